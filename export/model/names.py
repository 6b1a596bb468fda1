"""Names of parameters: PyTorch's turned into Hugging Face's, and the layer that a name belongs to."""

from __future__ import annotations

import re
from typing import Any

from edge_runtime.bundle.layers import LAYER_FIELD

_NUMBER = re.compile(r"(?<=\.layer\.)\d+(?=\.)|(?<=\.layers\.)\d+(?=\.)")
_LAYER = re.compile(r"\.(?:layer|layers)\.(\d+)\.")


def hugging_face_name(parameter: str) -> str:
    """Return a base parameter's name without the prefixes and infixes that the wrappers add."""
    name = parameter.removeprefix("task_model.model.base_model.model.")
    return name.replace(".base_layer.", ".").replace(".original_module.", ".")


def template(name: str) -> str:
    """Return the name of a layer's tensor with ``{layer}`` in place of the layer's number."""
    return _NUMBER.sub(LAYER_FIELD, name, count=1)


def layer_of(name: str) -> int | None:
    """Return the transformer layer in the dotted name of a parameter or module; None where it has none."""
    found = _LAYER.search(f".{name}.")
    return int(found.group(1)) if found else None


def unwrapped(model: Any) -> Any:
    """Return the model inside PEFT's wrapper, or the model itself in full mode, where nothing wraps it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
