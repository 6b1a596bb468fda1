"""The one place where a pickle is read: weights that others saved, by an unpickler that builds tensors alone.

PyTorch raises where a pickle names anything but tensors, and advises to switch that off; Covey never does.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch

from export.errors import ExportError
from export.source.foreign import AGAIN, check_file, reading

if TYPE_CHECKING:
    from pathlib import Path

_NAMED_GLOBAL = re.compile(r"(?:GLOBAL|class|global:?) ([\w.]+\.[\w.]+)")


def pickled_tensors(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return type and shape of each tensor in a file; no data is read, no code is run.

    Raises:
        ExportError: the file is a stand-in, is cut or damaged, or holds more than tensors by name.
    """
    size = check_file(path)
    safely = "get the model as safetensors, or save it as safetensors where you trust this file"
    try:
        with reading(f"{path} is cut or damaged ({size} bytes)", f"{AGAIN}, as safetensors if there is one"):
            state = torch.load(path, map_location="meta", weights_only=True)
    except ExportError as error:
        named = _NAMED_GLOBAL.search(str(error.__cause__))
        if named is None:
            raise
        raise ExportError(
            f"{path} holds more than tensors: its pickle calls {named[1]}, and Covey runs no code out of a file", safely
        ) from error
    if not isinstance(state, dict) or not state:
        raise ExportError(f"{path} holds {_kind(state)}, not the tensors of a model by name", safely)
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise ExportError(f"{path} holds {_kind(value)} under {name!r}, not a tensor", safely)
    return {str(name): (_dtype(tensor), tuple(tensor.shape)) for name, tensor in state.items()}


def _kind(value: object) -> str:
    return f"a value of type {type(value).__name__}"


def _dtype(tensor: torch.Tensor) -> str:
    layout = "" if tensor.layout == torch.strided else str(tensor.layout).removeprefix("torch.") + " "
    return layout + str(tensor.dtype).removeprefix("torch.")
