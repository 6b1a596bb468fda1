"""Markdown tables, and cells that summarize the seeds of one entry."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from benchmarks.harness.results import Results


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table; cells are written as ``str`` writes them."""
    lines = ["| " + " | ".join(map(str, cells)) + " |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def mean_and_deviation(runs: Results, key: str) -> str:
    """Return a figure's mean over runs ± its standard deviation, which one run alone does not have.

    Empty where no run has the figure.
    """
    values = [run[key] for run in runs if run[key] is not None]
    if not values:
        return ""
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{deviation}"
