"""Full mode, in which every weight is trained: the names, state and file of a model without LoRA."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edge_runtime.bundle.layout import NAMES_FILE
from edge_runtime.files.tensor_file import encode_header
from export.model.address import address_of
from export.model.tasks import PooledClassifier

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from edge_runtime.bundle.layout import Parameter
    from export.model.address import Address

CONFIG_FILE = "config.json"
ENCODER_PREFIX = "encoder."
"""Of PooledClassifier's encoder, in the names of its parameters."""


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


def hugging_face_names(model: Any) -> dict[str, list[str]]:
    """Return the names in Hugging Face's own file of each parameter that has another name there, or several.

    The encoder under Covey's own head has a prefix here and none there. A tensor that two modules share, such as the
    bias of a masked language model's output embedding, has the name of each: a reload would not share it, once the
    embeddings are untied.
    """
    shared: dict[Address, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        shared.setdefault(address_of(parameter), []).append(name)
    prefix = ENCODER_PREFIX if isinstance(model, PooledClassifier) else ""
    names = {name: shared[address_of(parameter)] for name, parameter in model.named_parameters()}
    return {
        name: [other.removeprefix(prefix) for other in others]
        for name, others in names.items()
        if [other.removeprefix(prefix) for other in others] != [name]
    }


def save_description(model: Any, loaded_config: Any, labels: Sequence[str], bundle: Path) -> None:
    """Write config.json for the folder of a finished model, and the names of its tensors where they differ.

    The configuration describes the finished model and not the loaded one: its class, its labels, untied embeddings,
    float32. It has no path that the model was loaded from.

    Args:
        model: the bare model, as it is trained.
        loaded_config: the configuration of the model's folder; whether a cache is used is its choice.
        labels: names of the labels of the model's head; empty for a language model.
        bundle: the bundle's folder.
    """
    hugging_face = model.encoder if isinstance(model, PooledClassifier) else model
    config = copy.deepcopy(hugging_face.config)
    config.architectures = [type(hugging_face).__name__]
    if hasattr(loaded_config, "use_cache"):
        config.use_cache = loaded_config.use_cache
    elif hasattr(config, "use_cache"):
        del config.use_cache
    if labels:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
    described = config.to_dict() | {"dtype": "float32"}
    described.pop("_name_or_path", None)
    (bundle / "adapter" / CONFIG_FILE).write_text(json.dumps(described, indent=2, sort_keys=True, default=str) + "\n")
    if names := hugging_face_names(model):
        (bundle / NAMES_FILE).write_text(json.dumps(names, indent=1) + "\n")
