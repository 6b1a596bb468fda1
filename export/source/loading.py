"""Loads the model of a folder that has been looked at."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
)

from export.errors import ExportError
from export.quiet import quiet
from export.source.architectures import ARCHITECTURES
from export.source.foreign import reading
from export.source.tensor_files import UNQUANTISED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from export.source.folder import ModelFolder

_AUTO_CLASSES = {
    "base": AutoModel,
    "causal": AutoModelForCausalLM,
    "masked": AutoModelForMaskedLM,
    "sequence-classification": AutoModelForSequenceClassification,
}
_TIED_COPIES = 2
"""A model has at most this many times the elements of its files: tied embeddings are stored once."""
_NEW_HEAD_ELEMENTS = 10_000_000
"""The elements that a model may have beyond its files; whether a missing weight is needed is checked by its name."""


def load_model(folder: ModelFolder, kind: str) -> Any:
    """Load the base model in float32, in evaluation mode.

    Args:
        folder: the folder to load from.
        kind: ``base``, ``causal``, ``masked`` or ``sequence-classification``.

    Raises:
        ExportError: weights are unreadable, missing, of another shape, not finite, or not floats.
    """
    architecture = ARCHITECTURES[folder.model_type]
    options: dict[str, Any] = {"attn_implementation": architecture.attention}
    if kind == "base" and architecture.has_pooler:
        options["add_pooling_layer"] = False
    _check_size(folder, kind)
    if folder.gguf_file is not None:
        options["gguf_file"] = folder.gguf_file
    hint = "check its files, or download them again"
    with (
        reading(f"cannot load the model in {folder.path}", hint),
        _without_adapter(folder.path) as path,
        quiet(),
    ):
        # A mismatch is reported below with its shapes; otherwise transformers raises and names them in its log alone.
        model, report = _AUTO_CLASSES[kind].from_pretrained(
            path,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            trust_remote_code=False,
            weights_only=True,
            dtype=torch.float32,
            **options,
        )
    if folder.gguf_file is not None:
        # The weights are plain floats now, so the configuration must not call them quantised.
        model.hf_quantizer = None
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
    _check_loaded(folder, model, report)
    model.config.use_cache = False
    return model.eval()


def _check_size(folder: ModelFolder, kind: str) -> None:
    """Refuse a configuration of a model far larger than its files, before memory is taken for it."""
    if folder.layers > folder.weights.tensors:
        raise ExportError(
            f"the configuration in {folder.path} has {folder.layers} layers, and the weights are "
            f"{folder.weights.tensors} tensors",
            "give the config.json that belongs to the weights",
        )
    with (
        reading(f"cannot build the model that the configuration in {folder.path} describes", "check its config.json"),
        torch.device("meta"),
        quiet(),
    ):
        described = sum(p.numel() for p in _AUTO_CLASSES[kind].from_config(folder.config).parameters())
    if described > _TIED_COPIES * folder.weights.elements + _NEW_HEAD_ELEMENTS:
        raise ExportError(
            f"the configuration in {folder.path} describes a model of {described} parameters, and the weights have "
            f"{folder.weights.elements}",
            "give the config.json that belongs to the weights",
        )


def _check_loaded(folder: ModelFolder, model: Any, report: dict[str, Any]) -> None:
    """Check what transformers merely logs: it gives random values to weights that a checkpoint lacks."""
    parameters = dict(model.named_parameters())
    mismatched = sorted((name, tuple(found), tuple(wanted)) for name, found, wanted in report["mismatched_keys"])
    if mismatched:
        name, found, wanted = mismatched[0]
        more = f"; so do {len(mismatched) - 1} more tensors" if mismatched[1:] else ""
        raise ExportError(
            f"the weights in {folder.path} do not fit its configuration: {name} has the shape {list(found)}, and the "
            f"configuration asks for {list(wanted)}{more}",
            "give the config.json that belongs to the weights; to get a new head on an encoder, give --pooling",
        )
    missing = sorted(set(report["missing_keys"]) & set(parameters))
    if missing:
        raise ExportError(
            f"the weights in {folder.path} lack {', '.join(missing[:3])}" + (" and more" if missing[3:] else ""),
            "give a folder with all of the model's weights; to get a new head on an encoder, give --pooling",
        )
    for name, parameter in parameters.items():
        if parameter.dtype != torch.float32:
            raise ExportError(f"parameter {name} is not float32", UNQUANTISED)
        if not bool(parameter.isfinite().all()):
            raise ExportError(
                f"the weights in {folder.path} are damaged: {name} has values that are not finite",
                "download the weights again, or give a model whose training did not diverge",
            )


@contextlib.contextmanager
def _without_adapter(path: Path) -> Iterator[Path]:
    """Yield a folder with the base model's files alone: transformers would load an adapter beside them by itself."""
    if not (path / "adapter_config.json").is_file():
        yield path
        return
    with tempfile.TemporaryDirectory() as scratch:
        for file in path.iterdir():
            if not file.name.startswith("adapter_"):
                (Path(scratch) / file.name).symlink_to(file.resolve())
        yield Path(scratch)
