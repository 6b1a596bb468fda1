"""The finished model without LoRA: its matrices are added to the weights; a Hugging Face folder of it."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

from peft import PeftModel
from safetensors.torch import load_file, save_file

from export.finished import WEIGHTS_FILE, load_finished
from export.model.full import CONFIG_FILE
from export.model.rebuild import read_rebuild
from export.model.tasks import PooledClassifier, TaskModel
from export.outputs.folder import new_folder
from export.quiet import quiet
from export.source.folder import look_at
from export.source.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from export.model.rebuild import Rebuild

TASK_KEY = "covey_task"
"""In config.json: what the model was trained for, as covey_task.json has it."""


def load_merged(adapter: Path, model_dir: Path) -> TaskModel:
    """Return the module (input_ids, attention_mask) → logits of a finished adapter, without LoRA in it.

    Args:
        adapter: see load_finished.
        model_dir: see load_finished.

    Raises:
        ExportError: see load_finished.
    """
    task_model = load_finished(adapter, model_dir)
    if isinstance(task_model.model, PeftModel):
        task_model.model = task_model.model.merge_and_unload(safe_merge=True)
    return task_model.eval()


def write_merged(adapter: Path, model_dir: Path, out: Path) -> None:
    """Write a finished model as a Hugging Face folder, with its tokenizer.

    Where every weight was trained, the finished folder is that already, and is copied. A head of Covey's own is in the
    same file as the encoder, as ``classifier.weight`` and ``classifier.bias``; the Auto class of the encoder leaves
    them out. config.json says under TASK_KEY how the head pools and scales.

    Args:
        adapter: see load_finished.
        model_dir: see load_finished.
        out: the folder to make.

    Raises:
        ExportError: see load_finished.
        StorageError: see new_folder.
    """
    folder, rebuild = look_at(model_dir), read_rebuild(adapter)
    model: Any = load_merged(adapter, model_dir).model
    if (adapter / WEIGHTS_FILE).exists():
        _copy_full(adapter, rebuild, out)
        return
    hugging_face = model.encoder if isinstance(model, PooledClassifier) else model
    config = hugging_face.config
    if hasattr(folder.config, "use_cache"):
        config.use_cache = folder.config.use_cache
    if rebuild["labels"] and rebuild["label_words"] is None:
        config.id2label = dict(enumerate(rebuild["labels"]))
        config.label2id = {label: index for index, label in enumerate(rebuild["labels"])}
    setattr(config, TASK_KEY, dict(rebuild))
    with new_folder(out) as partial, quiet():
        # One file, to which a head can be added.
        hugging_face.save_pretrained(partial, max_shard_size="1TB")
        load_tokenizer(folder).save_pretrained(partial)
        if isinstance(model, PooledClassifier):
            head = {f"classifier.{name}": tensor.detach() for name, tensor in model.classifier.named_parameters()}
            weights = partial / WEIGHTS_FILE
            save_file(load_file(weights) | head, weights, metadata={"format": "pt"})


def _copy_full(finished: Path, rebuild: Rebuild, out: Path) -> None:
    """Copy a finished model; its config.json says the task too."""
    with new_folder(out) as partial:
        for path in sorted(finished.iterdir()):
            shutil.copyfile(path, partial / path.name)
        config = json.loads((finished / CONFIG_FILE).read_text()) | {TASK_KEY: dict(rebuild)}
        (partial / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
