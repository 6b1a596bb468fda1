"""A finished adapter folder as a PyTorch module again.

For a Hugging Face classifier or a causal language model, ``PeftModel.from_pretrained`` on the usual Auto class is
enough. A head of ours (PooledClassifier) needs its module built first: ``base_for`` does that from the folder's
``covey_task.json``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peft import PeftModel
from safetensors.torch import load_file

from export.model.build import base_module
from export.model.full import untie
from export.model.rebuild import read_rebuild
from export.model.tasks import TaskModel
from export.quiet import quiet
from export.source.folder import look_at

if TYPE_CHECKING:
    from pathlib import Path

WEIGHTS_FILE = "model.safetensors"


def base_for(adapter: Path, model_dir: Path) -> Any:
    """Return the module that ``PeftModel.from_pretrained(module, adapter)`` wants.

    Raises:
        ExportError: ``covey_task.json`` is missing or of no use.
    """
    return base_module(look_at(model_dir), read_rebuild(adapter))[0]


def untrained(adapter: Path, model_dir: Path) -> TaskModel:
    """Return a module (input_ids, attention_mask) → logits with a base model's own weights, as full training begins.

    Args:
        adapter: a bundle's ``adapter`` folder.
        model_dir: the base model's folder.
    """
    model, rebuild = base_for(adapter, model_dir), read_rebuild(adapter)
    untie(model)
    return TaskModel(model, rebuild["label_token_ids"], rebuild["mask_token_id"]).eval()


def load_finished(adapter: Path, model_dir: Path) -> TaskModel:
    """Return a module (input_ids, attention_mask) → logits with a finished adapter.

    Args:
        adapter: a folder that ``covey serve`` wrote, or a bundle's ``adapter`` folder.
        model_dir: the base model's folder, the one that was exported.
    """
    model, rebuild = base_for(adapter, model_dir), read_rebuild(adapter)
    if (adapter / WEIGHTS_FILE).is_file():
        # Every weight was trained; what the task does not compute with is not in the file.
        untie(model)
        model.load_state_dict(load_file(adapter / WEIGHTS_FILE), strict=False)
    else:
        with quiet():
            model = PeftModel.from_pretrained(model, adapter)
    return TaskModel(model, rebuild["label_token_ids"], rebuild["mask_token_id"]).eval()
