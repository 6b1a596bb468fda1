"""Pictures of what convergence.py found: ``python -m benchmarks.learning.convergence --report``."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

Results = list[dict[str, Any]]


def plot_curves(results: Results, names: list[str], title: str, path: Path) -> None:
    """Draw held-out loss against forward equivalents: the mean over seeds, and each seed faintly."""
    figure, axes = plt.subplots(figsize=(8, 5))
    for index, name in enumerate(names):
        runs = [r for r in results if r["name"] == name]
        if not runs:
            continue
        colour = f"C{index % 10}"
        style = "-" if index < 10 else "--"
        start = statistics.fmean(r["loss_start"] for r in runs)
        for run in runs:
            axes.plot(
                [0, *(p[0] for p in run["curve"])],
                [run["loss_start"], *(p[1] for p in run["curve"])],
                color=colour,
                alpha=0.15,
            )
        curve = np.mean([[p[:2] for p in run["curve"]] for run in runs], axis=0)
        axes.plot([0, *curve[:, 0]], [start, *curve[:, 1]], style, color=colour, label=f"{name} ({len(runs)})")
    axes.set_xlabel("forward equivalents, all devices together")
    axes.set_ylabel("held-out loss")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
