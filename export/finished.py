"""A finished adapter folder as a PyTorch module again.

For a Hugging Face classifier or a causal language model, ``PeftModel.from_pretrained`` on the usual Auto class is
enough. A head of ours (PooledClassifier) needs its module built first: ``base_for`` does that from the folder's
``covey_task.json``.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from peft import PeftModel

from export.errors import ExportError
from export.folder import look_at
from export.model import base_module
from export.tasks import TaskModel

if TYPE_CHECKING:
    from pathlib import Path


def base_for(adapter: Path, model_dir: Path) -> Any:
    """Return the module that ``PeftModel.from_pretrained(module, adapter)`` wants.

    Raises:
        ExportError: ``covey_task.json`` is missing or of no use.
    """
    return base_module(look_at(model_dir), _rebuild(adapter))[0]


def load_finished(adapter: Path, model_dir: Path) -> TaskModel:
    """Return a module (input_ids, attention_mask) → logits with a finished adapter.

    Args:
        adapter: a folder that ``covey serve`` wrote, or a bundle's ``adapter`` folder.
        model_dir: the base model's folder, the one that was exported.
    """
    model = PeftModel.from_pretrained(base_for(adapter, model_dir), adapter)
    return TaskModel(model, _rebuild(adapter)["label_token_ids"]).eval()


def _rebuild(adapter: Path) -> dict[str, Any]:
    path = adapter / "covey_task.json"
    try:
        rebuild: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ExportError(f"cannot read {path}: {error}", "give the folder that covey serve wrote") from error
    return rebuild
