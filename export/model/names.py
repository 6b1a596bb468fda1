"""Names of parameters: from PyTorch's to Hugging Face's, and which layer a name belongs to."""

from __future__ import annotations

import re
from typing import Any

from edge_runtime.bundle.layers import LAYER_FIELD

_NUMBER = re.compile(r"(?<=\.layer\.)\d+(?=\.)|(?<=\.layers\.)\d+(?=\.)")
_LAYER = re.compile(r"\.(?:layer|layers)\.(\d+)\.")


def hugging_face_name(parameter: str) -> str:
    """Return a base parameter's name without what the wrappers put around it."""
    name = parameter.removeprefix("task_model.model.base_model.model.")
    return name.replace(".base_layer.", ".").replace(".original_module.", ".")


def template(name: str) -> str:
    """Return a layer's tensor's name with the layer's number left out."""
    return _NUMBER.sub(LAYER_FIELD, name, count=1)


def layer_of(name: str) -> int | None:
    """Return the transformer layer in a parameter's or module's dotted name, or None."""
    found = _LAYER.search(f".{name}.")
    return int(found.group(1)) if found else None


def unwrapped(model: Any) -> Any:
    """Return the model inside PEFT's wrapper, or the model itself where every weight is trained."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
