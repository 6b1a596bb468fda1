"""Checks on dropout levels before anything is traced: their number, and that layers are alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

from export.errors import ExportError
from export.model.names import template

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_runtime.bundle.layout import Parameter
    from export.source.folder import ModelFolder


def level_counts(shares: Sequence[float], n_layers: int) -> list[int]:
    """Return the numbers of active layers that shares of a model's layers are, ascending, at least one layer each.

    Raises:
        ExportError: a share is not above 0 and at most 1.
    """
    for share in shares:
        if not 0 < share <= 1:
            raise ExportError(
                f"--levels {share}: shares of active layers are above 0, at most 1", "as in: 1.0,0.5,0.33"
            )
    return sorted({max(1, round(share * n_layers)) for share in shares})


def check_alike(folder: ModelFolder, parameters: Sequence[Parameter]) -> None:
    """Check that any layer can take any slot.

    Raises:
        ExportError: some layers attend otherwise than others, or are not trained like others.
    """
    kinds = set(getattr(folder.config, "layer_types", None) or [])
    if len(kinds) > 1:
        raise ExportError(
            f"--levels: layers of several kinds ({', '.join(sorted(kinds))}) cannot take each other's place",
            "export without --levels",
        )
    trained = [{template(p.name) for p in parameters if p.layer == layer} for layer in range(folder.layers)]
    for layer, names in enumerate(trained):
        if not names or names != trained[0]:
            raise ExportError(
                f"--levels: layer {layer} is not trained like the others, so they cannot take each other's place",
                "leave out --lora-layers, so that all layers have LoRA",
            )
