"""Reads a local model folder: finds out what it holds, and loads its model and tokenizer.

It may be a Hugging Face folder (config.json, *.safetensors), a folder with a PEFT adapter, or a folder whose only model
file is a GGUF, which is dequantised to float32.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from export.errors import ExportError
from export.quiet import quiet
from export.source.architectures import ARCHITECTURES

if TYPE_CHECKING:
    from collections.abc import Iterator

_FLOATS = ("F64", "F32", "F16", "BF16")

_AUTO_CLASSES = {
    "base": AutoModel,
    "causal": AutoModelForCausalLM,
    "masked": AutoModelForMaskedLM,
    "sequence-classification": AutoModelForSequenceClassification,
}


@dataclass(frozen=True)
class ModelFolder:
    """A model folder whose content is known, but not loaded yet.

    Attributes:
        path: the folder with the base model.
        adapter: the folder with a PEFT adapter to continue with; None where there is none.
        gguf_file: name of the GGUF file; None for a folder with safetensors.
        config: the model's Hugging Face configuration.
    """

    path: Path
    adapter: Path | None
    gguf_file: str | None
    config: Any

    @property
    def model_type(self) -> str:
        """Hugging Face's name for the architecture."""
        return str(self.config.model_type)

    @property
    def layers(self) -> int:
        """Number of transformer layers."""
        return int(self.config.num_hidden_layers)

    @property
    def vocab_size(self) -> int:
        """Number of tokens in the vocabulary."""
        return int(self.config.vocab_size)

    @property
    def is_decoder(self) -> bool:
        """Whether a token attends only to itself and the tokens before it."""
        return ARCHITECTURES[self.model_type].is_decoder

    @property
    def has_trained_classifier(self) -> bool:
        """Whether the folder holds a ``…ForSequenceClassification`` model, which has its own head."""
        return any(name.endswith("ForSequenceClassification") for name in self.config.architectures or [])


def look_at(path: Path) -> ModelFolder:
    """Find out what a folder holds.

    Raises:
        ExportError: it is not a model folder, or its architecture is not supported.
    """
    if not path.is_dir():
        raise ExportError(f"{path} is not a folder", "give a local Hugging Face model folder")
    adapter = path if (path / "adapter_config.json").is_file() else None
    base = path
    if adapter is not None and not (path / "config.json").is_file():
        base = _base_of(path)
    gguf_files = sorted(file.name for file in base.glob("*.gguf"))
    gguf_file = gguf_files[0] if len(gguf_files) == 1 and not list(base.glob("*.safetensors")) else None
    if gguf_file is None and not (base / "config.json").is_file():
        raise ExportError(
            f"{base} has no config.json, nor exactly one .gguf file", "give a local Hugging Face model folder"
        )
    try:
        config = AutoConfig.from_pretrained(base, **({"gguf_file": gguf_file} if gguf_file else {}))
    except (OSError, ValueError, KeyError) as error:
        raise ExportError(
            f"cannot read the model's configuration in {base}: {error}", "check its config.json"
        ) from error
    if config.model_type not in ARCHITECTURES:
        raise ExportError(
            f"architecture {config.model_type!r} is not supported", f"give a model of: {', '.join(ARCHITECTURES)}"
        )
    return ModelFolder(base, adapter, gguf_file, config)


def _base_of(adapter: Path) -> Path:
    """Return the local folder of an adapter's base model, which ``base_model_name_or_path`` names."""
    try:
        name: str = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
        base = adapter / name
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportError(
            f"{adapter / 'adapter_config.json'} does not name its base model ({error!r})",
            "put the base model's files into the same folder",
        ) from error
    if not base.is_dir():
        raise ExportError(
            f"the adapter's base model {name!r} is not a local folder",
            "put the base model's files into the adapter's folder, or set base_model_name_or_path to a local path",
        )
    return base


def load_model(folder: ModelFolder, kind: str) -> Any:
    """Load the base model in float32, in evaluation mode.

    Args:
        folder: the folder to load from.
        kind: ``base``, ``causal``, ``masked`` or ``sequence-classification``.

    Raises:
        ExportError: weights are unreadable, missing or not floats.
    """
    _check_floats(folder)
    architecture = ARCHITECTURES[folder.model_type]
    options: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": architecture.attention}
    if folder.gguf_file is not None:
        options["gguf_file"] = folder.gguf_file
    if kind == "base" and architecture.has_pooler:
        options["add_pooling_layer"] = False
    try:
        with _without_adapter(folder.path) as path, quiet():
            model, report = _AUTO_CLASSES[kind].from_pretrained(path, output_loading_info=True, **options)
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise ExportError(f"cannot load the model in {folder.path}: {error}", "check its files") from error
    if folder.gguf_file is not None:
        # The weights are plain floats now, so the configuration must not call them quantised.
        model.hf_quantizer = None
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
    # transformers gives random values to weights that a checkpoint lacks, and reports it only in its log.
    missing = sorted(set(report["missing_keys"]) & {name for name, _ in model.named_parameters()})
    if missing:
        raise ExportError(
            f"the weights in {folder.path} lack {', '.join(missing[:3])}" + (" and more" if missing[3:] else ""),
            "give a folder with all of the model's weights; to get a new head on an encoder, give --pooling",
        )
    odd = next((name for name, p in model.named_parameters() if p.dtype != torch.float32), None)
    if odd is not None:
        raise ExportError(f"parameter {odd} is not float32", "give a model that is not quantised, or a GGUF file")
    model.config.use_cache = False
    return model.eval()


def _check_floats(folder: ModelFolder) -> None:
    """Refuse quantised weights: a cast to float32 would take their integers for weights."""
    for path in sorted(folder.path.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 tensors is no dict
                    dtype = tensors.get_slice(name).get_dtype()
                    if name.endswith((".weight", ".bias")) and dtype not in _FLOATS:
                        raise ExportError(
                            f"{path.name}: {name} is {dtype}, not a float",
                            "give a model that is not quantised, or a GGUF file",
                        )
        except (OSError, SafetensorError) as error:
            raise ExportError(f"cannot load the model: {path}: {error}", "check its files") from error


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


def load_tokenizer(folder: ModelFolder) -> Any:
    """Load the tokenizer in its fast form, which the device's ``tokenizers`` library reads.

    Raises:
        ExportError: the tokenizer is missing, unreadable, or has no fast form.
    """
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(
                folder.path, use_fast=True, **({"gguf_file": folder.gguf_file} if folder.gguf_file else {})
            )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ExportError(
            f"cannot load the tokenizer in {folder.path}: {error}", "put tokenizer.json beside the model"
        ) from error
    # Without a vocabulary, transformers silently makes an empty tokenizer of the model's type.
    known = {"tokenizer.json", *tokenizer.vocab_files_names.values()}
    if folder.gguf_file is None and not any((folder.path / name).is_file() for name in known):
        raise ExportError(f"there is no tokenizer in {folder.path}", "put tokenizer.json beside the model")
    if not tokenizer.is_fast:
        raise ExportError(f"the tokenizer in {folder.path} has no fast form", "put tokenizer.json beside the model")
    return tokenizer
