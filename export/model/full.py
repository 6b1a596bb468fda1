"""Full mode, in which every weight is trained: the names, state and file of a model without LoRA."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edge_runtime.files.tensor_file import encode_header
from export.model.address import address_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from edge_runtime.bundle.layout import Parameter
    from export.model.address import Address

CONFIG_FILE = "config.json"


def untie(model: Any) -> None:
    """Give the output embedding its own copy of the weights where it shares the input embedding's.

    The input embedding belongs to the front block and the output embedding to the back block. A weight that both blocks
    share could not be perturbed in one of them alone.
    """
    if not hasattr(model, "get_output_embeddings") or not hasattr(model, "get_input_embeddings"):
        return
    output, tied = model.get_output_embeddings(), model.get_input_embeddings()
    if output is not None and output.weight is tied.weight:
        output.weight = torch.nn.Parameter(tied.weight.detach().clone())
        model.config.tie_word_embeddings = False


def parameter_names(model: Any) -> dict[Address, str]:
    """Return the name of each parameter, by the address of its data."""
    return {address_of(parameter): name for name, parameter in model.named_parameters()}


def parameter_state(model: Any) -> dict[str, torch.Tensor]:
    """Return the parameters by name."""
    return dict(model.named_parameters())


def write_flat(path: Path, parameters: Sequence[Parameter], state: Mapping[str, torch.Tensor]) -> None:
    """Write parameters as safetensors in layout order, so that the file's data section is the trainable vector.

    The safetensors library would sort the tensors; the format allows any order.
    """
    with path.open("wb") as file:
        file.write(encode_header({parameter.name: parameter.shape for parameter in parameters}, {"format": "pt"}))
        for parameter in parameters:
            tensor = state[parameter.name].detach().contiguous().numpy()
            file.write(np.ascontiguousarray(tensor, dtype="<f4").data)


def save_config(model: Any, folder: Path) -> None:
    """Write the model's configuration for the folder of a finished model, without the path it was loaded from."""
    config = copy.deepcopy(model.config).to_dict()
    config.pop("_name_or_path", None)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True, default=str) + "\n")
