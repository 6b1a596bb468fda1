"""Looks at a local model folder: finds out what it holds, and whether all of it is there.

It may be a Hugging Face folder (config.json, *.safetensors), a folder with a PEFT adapter, or a folder whose only model
file is a GGUF, which is dequantised to float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig

from export.errors import ExportError
from export.quiet import quiet
from export.source.architectures import ARCHITECTURES, longest_row
from export.source.foreign import check_known_files, reading
from export.source.weights import check_adapter_files, check_weights, gguf_in, read_object

if TYPE_CHECKING:
    from pathlib import Path

    from export.source.weights import Weights


@dataclass(frozen=True)
class ModelFolder:
    """A model folder whose content is known, but not loaded yet.

    Attributes:
        path: the folder with the base model.
        adapter: the folder with a PEFT adapter to continue with; None where there is none.
        gguf_file: name of the GGUF file; None for a folder with safetensors.
        config: the model's Hugging Face configuration.
        weights: the files with the base model's weights.
    """

    path: Path
    adapter: Path | None
    gguf_file: str | None
    config: Any
    weights: Weights

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
    """Find out what a folder holds, and check every file that will be read: that it is there, whole, and no stand-in.

    Raises:
        ExportError: it is not a model folder, its architecture is not supported, or one of its files is unusable.
    """
    if not path.is_dir():
        raise ExportError(f"{path} is not a folder", "give a local Hugging Face model folder")
    check_known_files(path)
    adapter = path if (path / "adapter_config.json").is_file() else None
    base = path
    if adapter is not None and not (path / "config.json").is_file():
        base = _base_of(path)
        check_known_files(base)
    if adapter is not None:
        check_adapter_files(adapter)
    gguf_file = gguf_in(base)
    if gguf_file is None and not (base / "config.json").is_file():
        raise ExportError(
            f"{base} has no config.json, nor exactly one .gguf file", "give a local Hugging Face model folder"
        )
    weights = None if gguf_file is None else check_weights(base, gguf_file)
    config = _read_config(base, gguf_file)
    return ModelFolder(base, adapter, gguf_file, config, weights or check_weights(base, gguf_file))


def _read_config(base: Path, gguf_file: str | None) -> Any:
    """Return the model's configuration, with its sizes checked: the modules' own checks are assertions or none."""
    source = base / (gguf_file or "config.json")
    hint = "check the file, or download it again"
    with reading(f"cannot read the model's configuration in {source}", hint), quiet():
        # Asked without an answer, transformers would wait for one on the terminal.
        options = {"gguf_file": gguf_file} if gguf_file else {}
        config = AutoConfig.from_pretrained(base, trust_remote_code=False, **options)
    if config.model_type not in ARCHITECTURES:
        raise ExportError(
            f"architecture {config.model_type!r} is not supported", f"give a model of: {', '.join(ARCHITECTURES)}"
        )
    method = (getattr(config, "quantization_config", None) or {}) if gguf_file is None else {}
    if method:
        name = method.get("quant_method") if isinstance(method, dict) else getattr(method, "quant_method", None)
        raise ExportError(
            f"{source} says that the model is quantised ({getattr(name, 'value', name) or 'quantization_config'})",
            "give the model that is not quantised, or a GGUF file",
        )
    with reading(f"{source} lacks a size of the model, or has a wrong one", hint):
        sizes = {name: getattr(config, name) for name in ("vocab_size", "num_hidden_layers", "hidden_size")}
        for name, size in (sizes | {"longest row": longest_row(config)}).items():
            if not isinstance(size, int) or size < 1:
                raise ExportError(f"{source}: {name} is {size!r}, not a number above 0", hint)
        pad = config.pad_token_id
        if pad is not None and not (isinstance(pad, int) and -config.vocab_size <= pad < config.vocab_size):
            raise ExportError(
                f"{source}: pad_token_id is {pad!r}, and the vocabulary has {config.vocab_size} tokens",
                "set pad_token_id to a token of the vocabulary, or enlarge the model's embedding: "
                "model.resize_token_embeddings(len(tokenizer))",
            )
    return config


def _base_of(adapter: Path) -> Path:
    """Return the local folder of an adapter's base model, which ``base_model_name_or_path`` names."""
    path = adapter / "adapter_config.json"
    name = read_object(path).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise ExportError(f"{path} does not name its base model", "put the base model's files into the same folder")
    base = adapter / name
    with reading(f"the adapter's base model {name!r} is no path", "set base_model_name_or_path to a local path"):
        found = base.is_dir()
    if not found:
        raise ExportError(
            f"the adapter's base model {name!r} is not a local folder",
            "put the base model's files into the adapter's folder, or set base_model_name_or_path to a local path",
        )
    return base
