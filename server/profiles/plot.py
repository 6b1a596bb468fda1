"""Plots profiles as bars, one group per graph; modelled times are hatched and labelled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edge_runtime.errors import ConfigError, storage_error

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes


def plot_rows(rows: Sequence[dict[str, Any]], series: str, title: str, path: Path) -> None:
    """Plot medians on a logarithmic axis, with the 10th to 90th percentile as error bars where they were measured.

    Args:
        rows: rows of compare.compare.
        series: the field that tells the bars of a group apart: ``profile`` or ``shape``.
        title: title of the plot.
        path: the file to write; ends in .png, .svg or .pdf.

    Raises:
        ConfigError: matplotlib is not installed, or cannot write files with this ending.
        StorageError: the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 an extra
    except ImportError as error:
        raise ConfigError("plots need matplotlib", "pip install 'covey[plot]'") from error
    figure = Figure(figsize=(10, 5))
    if path.suffix.lstrip(".").lower() not in figure.canvas.get_supported_filetypes():
        raise ConfigError(f"{path} has no ending of a picture", "name it something.png")
    _draw(figure.add_subplot(), rows, series, title)
    figure.tight_layout()
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise storage_error(error, path) from error


def _draw(axes: Axes, rows: Sequence[dict[str, Any]], series: str, title: str) -> None:
    groups = list(dict.fromkeys((row["graph"], row["engine"]) for row in rows))
    members = list(dict.fromkeys(row[series] for row in rows))
    width = 0.8 / len(members)
    for index, member in enumerate(members):
        mine = [row for row in rows if row[series] == member]
        modelled = mine[0]["source"] == "modelled"
        at = [groups.index((row["graph"], row["engine"])) + (index - (len(members) - 1) / 2) * width for row in mine]
        medians = [row["median_s"] * 1e3 for row in mine]
        below = [(row["median_s"] - (row["low_s"] or row["median_s"])) * 1e3 for row in mine]
        above = [((row["high_s"] or row["median_s"]) - row["median_s"]) * 1e3 for row in mine]
        axes.bar(
            at,
            medians,
            width,
            color=f"C{index % 10}",
            alpha=0.5 if modelled else 1.0,
            hatch="//" if modelled else "",
            edgecolor="black",
            linewidth=0.5,
            yerr=None if modelled else [below, above],
            label=f"{member} ({mine[0]['source']})",
        )
    axes.set_yscale("log")
    axes.set_ylabel("milliseconds per run")
    axes.set_xticks(range(len(groups)), [f"{graph}\n{engine}" for graph, engine in groups], fontsize=8)
    axes.set_title(title)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
