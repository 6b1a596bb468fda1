"""Turns shares into levels, and checks before tracing that a model's layers can replace each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from export.errors import ExportError
from export.model.names import template

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_runtime.bundle.layout import Parameter
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


def check_alike(folder: ModelFolder, parameters: Sequence[Parameter]) -> None:
    """Check that any layer can be bound to any slot of a training graph.

    Args:
        folder: the model's folder.
        parameters: the layout of the trained tensors.

    Raises:
        ExportError: layers differ in their kind of attention, or in their trained tensors.
    """
    kinds = set(getattr(folder.config, "layer_types", None) or [])
    if len(kinds) > 1:
        raise ExportError(
            f"--levels: layers of several kinds ({', '.join(sorted(kinds))}) cannot replace each other",
            "leave out --levels",
        )
    trained = [{template(p.name) for p in parameters if p.layer == layer} for layer in range(folder.layers)]
    for layer, names in enumerate(trained):
        if not names or names != trained[0]:
            raise ExportError(
                f"--levels: layer {layer} is not trained like the others, so the layers cannot replace each other",
                "leave out --lora-layers, so that all layers have LoRA",
            )
