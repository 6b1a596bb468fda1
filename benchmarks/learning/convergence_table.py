"""Tables of what convergence.py found."""

from __future__ import annotations

import statistics
from typing import Any

Results = list[dict[str, Any]]


def table(results: Results, names: list[str]) -> str:
    """Return a Markdown table, a method a line: mean ± standard deviation over seeds."""
    lines = [
        "| method | learning rate | seeds | held-out loss | accuracy | forwards | up, B | down, B | s | peak MB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in names:
        runs = [r for r in results if r["name"] == name]
        if not runs:
            continue
        first = runs[0]
        lines.append(
            f"| {name} | {first['step']['learning_rate']} | {len(runs)} | {spread(runs, 'loss_end')} | "
            f"{spread(runs, 'accuracy_end')} | {first['forwards']:.0f} | {first['bytes_up_per_device_round']} | "
            f"{first['bytes_down_per_device_round']} | {statistics.fmean(r['wall_s'] for r in runs):.0f} | "
            f"{max(r['peak_rss_mb'] for r in runs):.0f} |"
        )
    return "\n".join(lines)


def spread(runs: Results, key: str) -> str:
    """Return mean ± standard deviation over seeds."""
    values = [run[key] for run in runs]
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.3f} ± {deviation:.3f}"
