"""Turns what ``--levels`` says into levels, and checks before tracing that a model's layers can replace each other."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from edge_runtime.bundle.levels import Level, ascending, top_level
from export.errors import ExportError
from export.model.adapter_config import merge_hint
from export.source.architectures import has_final_norm

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_runtime.bundle.layout import Parameter
    from edge_runtime.bundle.manifest import TaskKind
    from export.source.folder import ModelFolder


def level_counts(shares: Sequence[float], n_layers: int) -> list[int]:
    """Return the numbers of active layers for shares of a model's layers: ascending, distinct, at least one layer each.

    Raises:
        ExportError: a share is outside (0, 1].
    """
    for share in shares:
        if not 0 < share <= 1:
            raise ExportError(
                f"--levels {share}: a share of active layers is above 0 and at most 1", "as in --levels 1.0,0.5,0.33"
            )
    return sorted({max(1, round(share * n_layers)) for share in shares})


def levels_of(shares: Sequence[float], tops: Sequence[int], n_layers: int) -> list[Level]:
    """Return the levels for shares of active layers, and for numbers of layers that top levels train: ascending.

    Raises:
        ExportError: a share is outside (0, 1], or a number is not 1 to the model's number of layers.
    """
    for top in tops:
        if not 1 <= top <= n_layers:
            raise ExportError(
                f"--levels top:{top}: the model has {n_layers} layers", f"choose from top:1 to top:{n_layers}"
            )
    return ascending([*level_counts(shares, n_layers), *map(top_level, tops)])


def trains_norm_alone(task: TaskKind, folder: ModelFolder) -> bool:
    """Return whether the final norm is the back block where nothing else is asked for: what was best for a prompt.

    An adapter to continue with stays what it is, and some models have no final norm.
    """
    return task == "classify-prompt" and folder.adapter is None and has_final_norm(folder.config)


def default_splits(task: TaskKind, tops: Sequence[int], n_layers: int, *, norm_alone: bool) -> list[int]:
    """Return the splits of a bundle for which none were asked: what was best where it was measured (docs/results.md).

    With a head of its own, the head alone is the back block, and so is a prompt's final norm; otherwise it begins after
    two thirds of the layers. Each top level gets the split below it, so that devices can train it behind a kept front.

    Args:
        task: the task.
        tops: numbers of layers that top levels train.
        n_layers: the model's layers.
        norm_alone: see trains_norm_alone.
    """
    back = n_layers if task == "classify-head" or norm_alone else max(1, round(n_layers * 2 / 3))
    return sorted({back, *(n_layers - top for top in tops if 1 <= top < n_layers)})


def check_alike(folder: ModelFolder, parameters: Sequence[Parameter], difference: str | None) -> None:
    """Check that any layer can be bound to any slot of a training graph.

    Args:
        folder: the model's folder.
        parameters: the layout of the trained tensors.
        difference: how a layer differs from layer 0 in its tensors; None: all are alike.

    Raises:
        ExportError: layers differ in their kind of attention, or in their tensors.
    """
    kinds = set(getattr(folder.config, "layer_types", None) or [])
    if len(kinds) > 1:
        raise ExportError(
            f"--levels: layers of several kinds ({', '.join(sorted(kinds))}) cannot replace each other",
            "leave out --levels",
        )
    hint = "leave out --lora-layers, so that all layers have LoRA"
    if folder.adapter is not None:
        described = json.loads((folder.adapter / "adapter_config.json").read_text())
        hint = f"leave out --levels, or {merge_hint(described, folder)} with a new adapter"
    for layer in range(folder.layers):
        if not any(parameter.layer == layer for parameter in parameters):
            raise ExportError(
                f"--levels: layer {layer} is not trained like the others, so the layers cannot replace each other", hint
            )
    if difference is not None:
        raise ExportError(f"--levels: the layers cannot replace each other: {difference}", hint)
