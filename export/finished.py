"""Loads a finished adapter folder as a PyTorch module.

For a Hugging Face classifier or a causal language model, ``PeftModel.from_pretrained`` on the usual Auto class is
enough. Covey's own head (PooledClassifier) needs its module built first, which ``base_for`` does from the folder's
``covey_task.json``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import PeftModel
from safetensors.torch import load_file

from edge_runtime.bundle.layout import NAMES_FILE
from export.model.build import base_module
from export.model.full import untie
from export.model.rebuild import read_rebuild
from export.model.tasks import TaskModel
from export.quiet import quiet
from export.source.folder import look_at
from export.source.foreign import reading
from export.source.tensor_files import read_infos
from export.source.weights import check_adapter_files

if TYPE_CHECKING:
    import torch

WEIGHTS_FILE = "model.safetensors"


def base_for(adapter: Path, model_dir: Path) -> Any:
    """Return the module to pass to ``PeftModel.from_pretrained(module, adapter)``.

    Args:
        adapter: the adapter's folder.
        model_dir: the base model's folder.

    Raises:
        ExportError: ``covey_task.json`` is missing or unusable, or the base model cannot be loaded.
    """
    return base_module(look_at(model_dir), read_rebuild(adapter))[0]


def untrained(adapter: Path, model_dir: Path) -> TaskModel:
    """Return a module (input_ids, attention_mask) → logits with the base model's own weights, where full mode starts.

    Args:
        adapter: a bundle's ``adapter`` folder.
        model_dir: the base model's folder.
    """
    model, rebuild = base_for(adapter, model_dir), read_rebuild(adapter)
    untie(model)
    return TaskModel(model, rebuild["label_token_ids"], rebuild["mask_token_id"]).eval()


def load_finished(adapter: Path, model_dir: Path) -> TaskModel:
    """Return a module (input_ids, attention_mask) → logits with a finished adapter's weights.

    Args:
        adapter: a folder that ``covey serve`` wrote, or a bundle's ``adapter`` folder.
        model_dir: the base model's folder, from which the bundle was exported.

    Raises:
        ExportError: a file of the two folders is missing, is cut or damaged, or they do not fit each other.
    """
    weights = adapter / WEIGHTS_FILE
    full = weights.is_symlink() or weights.exists()
    if full:
        read_infos(weights)
    else:
        check_adapter_files(adapter)
    model, rebuild = base_for(adapter, model_dir), read_rebuild(adapter)
    with reading(f"cannot load {adapter}", "give the folder that covey serve wrote, and the model it was trained on"):
        if full:
            # Every weight was trained; the file leaves out weights that the task does not compute with.
            untie(model)
            model.load_state_dict(_trained(adapter), strict=False)
        else:
            with quiet():
                model = PeftModel.from_pretrained(model, adapter)
    return TaskModel(model, rebuild["label_token_ids"], rebuild["mask_token_id"]).eval()


def _trained(finished: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a finished model by their names in the module that was trained."""
    stored: dict[str, torch.Tensor] = load_file(finished / WEIGHTS_FILE)
    path = finished / Path(NAMES_FILE).name
    names: dict[str, list[str]] = json.loads(path.read_text()) if path.is_file() else {}
    return stored | {name: stored[others[0]] for name, others in names.items() if others[0] in stored}
