"""Compares the tensors of a PEFT adapter's file with the model that they are for, before anything is traced."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from export.model.adapter_config import merge_hint
from export.model.adapter_table import AdapterRow, refusal, rows_of
from export.model.names import layer_of, template
from export.model.rebuild import FILE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from export.model.adapter_table import Fate
    from export.source.folder import ModelFolder

PREFIX = "base_model.model."
"""Of every name in PEFT's file."""
OTHER_ADAPTER = "give an adapter that was trained on this model, for this task"
_HEAD = re.compile(r"\b(classifier|score|out_proj)\.weight$")


def base_weights(model: Any) -> dict[str, torch.Tensor]:
    """Return a model's parameters by the names that they have in PEFT's file, a tied one by each of its names."""
    return {PREFIX + name: parameter for name, parameter in model.named_parameters(remove_duplicate=False)}


def check_tensors(
    stored: Mapping[str, torch.Tensor],
    state: Mapping[str, torch.Tensor],
    base: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
    folder: ModelFolder,
) -> list[AdapterRow]:
    """Check that an adapter's file holds just the tensors that the wrapped model needs.

    Args:
        stored: the file's tensors.
        state: the adapter's tensors in the wrapped model.
        base: the model's own weights: see base_weights.
        config: the content of ``adapter_config.json``.
        folder: the folder with the adapter.

    Returns:
        A row for each weight of the model itself that the file holds too, with the same values: it can be left out.

    Raises:
        AdapterError: a tensor is too many, missing, or has another shape.
    """
    judged: dict[str, tuple[Fate, str]] = {}
    rows_of_vocabulary = None
    for name in sorted(set(stored) | set(state)):
        own = base.get(name.replace(".base_layer.", "."))
        wanted = state.get(name, own)
        if wanted is None:
            judged[name] = ("refused", "in the adapter, but not in the model")
        elif name not in stored:
            judged[name] = ("refused", "missing in the adapter")
        elif stored[name].shape != wanted.shape:
            there, here = list(stored[name].shape), list(wanted.shape)
            judged[name] = ("refused", f"{there} in the adapter, but {here} in the model")
            if "embed" in name or "lm_head" in name or "shared" in name:
                rows_of_vocabulary = there[0]
        elif name not in state:
            same = own is not None and torch.equal(stored[name].to(own.dtype), own)
            judged[name] = ("kept", "equal to the model's") if same else ("refused", "a changed weight of the model")
    rows = rows_of(dict(state) | dict(stored), judged, judged.__getitem__)
    odd = [name for name in judged if judged[name][0] == "refused"]
    if odd:
        first = min(odd, key=lambda name: (name not in stored, name))
        what = f"{first} is {judged[first][1]}"
        if rows_of_vocabulary is not None:
            what += ": the vocabulary was enlarged, and the adapter holds whole embeddings"
        raise refusal(rows, what, _hint(stored, config, folder, rows_of_vocabulary))
    return rows


def _hint(
    stored: Mapping[str, torch.Tensor], config: Mapping[str, Any], folder: ModelFolder, vocabulary: int | None
) -> str:
    """Return what to do about an adapter whose tensors don't fit; one of Covey's own heads cannot be merged."""
    if folder.adapter is None or (folder.adapter / FILE).is_file():
        return OTHER_ADAPTER
    labels = next((int(tensor.shape[0]) for name, tensor in sorted(stored.items()) if _HEAD.search(name)), None)
    if config.get("task_type") != "SEQ_CLS" or labels == folder.config.num_labels:
        labels = None
    merge = merge_hint(config, folder, vocabulary=vocabulary, labels=labels)
    return merge if vocabulary is not None else f"{OTHER_ADAPTER}, or {merge}"


def check_output_embedding(peft_model: Any, config: Mapping[str, Any], folder: ModelFolder) -> None:
    """Check that no LoRA is on a language model's output embedding, of which Covey reads single rows.

    Raises:
        AdapterError: there is.
    """
    model = peft_model.get_base_model()
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if not isinstance(output, BaseTunerLayer):
        return
    name = next(name for name, module in peft_model.named_modules() if module is output)
    row = AdapterRow(name, None, None, "refused", "LoRA on the output embedding")
    tied = model.get_input_embeddings().weight is output.get_base_layer().weight
    hint = merge_hint(config, folder)
    if tied:
        hint = f"train an adapter without {name.rpartition('.')[2]}: merged, it would change the input embedding too"
    raise refusal([row], f"{name} has LoRA: Covey computes with single rows of the output embedding", hint)


def layer_differences(
    peft_model: Any, state: Mapping[str, torch.Tensor], trained: Sequence[str], n_layers: int
) -> str | None:
    """Return how one layer differs from layer 0 in its tensors, their shapes or LoRA's scale; None: all are alike.

    Args:
        peft_model: the wrapped model.
        state: the adapter's tensors by name.
        trained: names of the trained tensors.
        n_layers: number of transformer layers.
    """
    marks: list[dict[str, str]] = [{} for _ in range(n_layers)]
    for name, tensor in (*peft_model.named_parameters(), *state.items()):
        if (layer := layer_of(name)) is not None:
            marks[layer][template(name)] = f"the shape {list(tensor.shape)}"
    for name, module in peft_model.named_modules():
        if isinstance(module, BaseTunerLayer) and hasattr(module, "scaling") and (layer := layer_of(name)) is not None:
            marks[layer][template(name)] = f"the scale {module.scaling['default']:g}"
    for name in trained:
        if (layer := layer_of(name)) is not None:
            marks[layer][template(name)] += ", trained"
    for layer, found in enumerate(marks):
        for name in sorted(set(found) | set(marks[0])):
            here, there = found.get(name, "no such tensor"), marks[0].get(name, "no such tensor")
            if here != there:
                return f"{name} has {here} in layer {layer}, but {there} in layer 0"
    return None
