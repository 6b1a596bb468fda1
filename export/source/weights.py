"""Which files of a model folder hold its weights, and whether they are whole."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from export.errors import ExportError
from export.source.foreign import check_file, reading
from export.source.gguf_file import check_gguf
from export.source.tensor_files import count_elements, read_infos

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_SINGLE_OR_INDEX = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""What transformers looks for, in its order."""
_OTHER_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack", "*.onnx", "*.ckpt")
_INDEX = ".index.json"
_SHOWN = 3


@dataclass(frozen=True)
class Weights:
    """The files with a model's weights, looked into but not loaded.

    Attributes:
        files: in the order of their names; one GGUF file, or some of safetensors or of PyTorch's own format.
        tensors: number of tensors in them.
        elements: number of elements of all tensors.
    """

    files: list[Path]
    tensors: int
    elements: int


def gguf_in(folder: Path) -> str | None:
    """Return the name of a folder's only GGUF file; None where it has none.

    Raises:
        ExportError: there are several, or weights of another format beside it, so that it is not clear what is meant.
    """
    found = _names(path for path in folder.glob("*.gguf"))
    if not found:
        return None
    if len(found) > 1:
        raise ExportError(
            f"{folder} has {len(found)} GGUF files: {_some(found)}",
            "leave the one to export alone in the folder; the parts of a split file are merged with llama.cpp's "
            "llama-gguf-split --merge",
        )
    others = [name for name in _others(folder) if name.endswith((".safetensors", ".bin"))]
    if others:
        raise ExportError(
            f"{folder} has a GGUF file beside other weights: {found[0]} and {_some(others)}",
            "leave one of the two in the folder: the safetensors where they are the model before it was quantised",
        )
    return found[0]


def check_weights(folder: Path, gguf_file: str | None) -> Weights:
    """Find the files that hold a model's weights and check that each is whole, of floats, and what its name says.

    Raises:
        ExportError: no weights, a shard that is missing, or a file that is a stand-in, cut, damaged, or quantised.
    """
    if gguf_file is not None:
        info = check_gguf(folder / gguf_file)
        return Weights([folder / gguf_file], info.tensors, info.elements)
    first = next((folder / name for name in _SINGLE_OR_INDEX if os.path.lexists(folder / name)), None)
    if first is None:
        others = _others(folder)
        raise ExportError(
            f"{folder} has no weights that Covey reads" + (f", but {_some(others)}" if others else ""),
            "give a folder with model.safetensors (or its shards with model.safetensors.index.json), "
            "pytorch_model.bin, or one .gguf file",
        )
    files = _shards(first) if first.name.endswith(_INDEX) else [first]
    infos = {path.name: read_infos(path) for path in files}
    return Weights(files, sum(len(tensors) for tensors in infos.values()), count_elements(infos))


def check_adapter_files(adapter: Path) -> None:
    """Check the weights of a PEFT adapter.

    Raises:
        ExportError: there are none, or none in the safetensors format, or the file is a stand-in, cut or damaged.
    """
    path = adapter / "adapter_model.safetensors"
    if os.path.lexists(path):
        read_infos(path)
        return
    if os.path.lexists(adapter / "adapter_model.bin"):
        check_file(adapter / "adapter_model.bin")
        raise ExportError(
            f"the adapter in {adapter} is in PyTorch's old format, adapter_model.bin",
            "save it as safetensors where you trust it: PeftModel.from_pretrained(…).save_pretrained(…)",
        )
    raise ExportError(
        f"{adapter} has an adapter_config.json, but no adapter_model.safetensors",
        "put the adapter's weights beside it, or remove adapter_config.json to start a new adapter",
    )


def read_object(path: Path) -> dict[str, object]:
    """Return the JSON object in a file.

    Raises:
        ExportError: the file is a stand-in, is not JSON, or holds something else.
    """
    check_file(path)
    with reading(f"cannot read {path}", "correct the file, or download it again"):
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise TypeError(f"it holds a {type(content).__name__}, not an object")
        return content


def _shards(index: Path) -> list[Path]:
    """Return the files that an index names, each of them once."""
    found = read_object(index).get("weight_map")
    if not isinstance(found, dict) or not found or not all(isinstance(name, str) for name in found.values()):
        raise ExportError(f"{index} has no weight_map from tensors to files", "download the file again")
    names = sorted(set(found.values()))
    for name in names:
        if "/" in name or "\\" in name or not os.path.lexists(index.parent / name):
            raise ExportError(
                f"{index.name} names {len(names)} files, and {name!r} is not in {index.parent}",
                f"download {name!r} too",
            )
    return [index.parent / name for name in names]


def _others(folder: Path) -> list[str]:
    """Return the names of the folder's files that hold weights of some format, but no adapter."""
    return _names(
        path
        for pattern in _OTHER_WEIGHTS
        for path in folder.glob(pattern)
        if not path.name.startswith(("adapter_", "training_args"))
    )


def _names(paths: Iterable[Path]) -> list[str]:
    return sorted(path.name for path in paths)


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
