"""Pictures that are written to a file: the panels of one, and its end. Matplotlib is loaded when one is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def new_panels(
    rows: int, columns: int, size: tuple[float, float], *, share_y: bool = False
) -> tuple[Figure, list[Axes]]:
    """Return a new figure and its panels, row by row, each with a grid.

    Args:
        rows: rows of panels.
        columns: panels per row.
        size: width and height of the whole figure in inches.
        share_y: whether all panels have the same y axis.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, sharey=share_y)
    panels: list[Axes] = list(grid.flat)
    for axes in panels:
        axes.grid(alpha=0.3)
    return figure, panels


def save(figure: Figure, path: Path, dots_per_inch: int) -> None:
    """Write a figure to a file and free its memory."""
    import matplotlib.pyplot as plt

    figure.tight_layout()
    figure.savefig(path, dpi=dots_per_inch)
    plt.close(figure)
