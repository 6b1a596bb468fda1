"""Writes the page: every value is escaped, nothing is loaded from elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from edge_runtime import __version__
from server.report.plots import plots_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

_ROUNDS = ("round", "attempt", "state", "offered", "reports", "slowest_s", "bytes_up", "bytes_down", "loss", "accuracy")
_DEVICES = ("device", "kind", "level", "reports", "mean_seconds", "bytes_up", "bytes_down", "peak_rss_bytes")
_MOST_DIGITS = 5


def page_of(history: dict[str, Any], now: datetime) -> str:
    """Return a job's report as HTML.

    Args:
        history: what server.views.history says of the job.
        now: when the report is made.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    environment = Environment(
        loader=PackageLoader("server.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    scalars = [(key, value) for key, value in history.items() if not isinstance(value, (list, dict))]
    tables = {
        "Figures": _table(("figure", "value"), [{"figure": key, "value": value} for key, value in scalars]),
        "Rounds": _table(_ROUNDS, history["round_list"]),
        "Devices": _table(_DEVICES, history["device_list"]),
    }
    return environment.get_template("report.html.jinja").render(
        job=history,
        sentence=_sentence(history),
        notes=_notes(history),
        plots={title: Markup(svg) for title, svg in plots_of(history).items()},  # noqa: S704 matplotlib escapes labels
        tables=tables,
        version=__version__,
        made_at=now.strftime("%Y-%m-%d %H:%M %Z"),
    )


def _sentence(history: dict[str, Any]) -> str:
    """Return what the job has come to, in a sentence or two."""
    text = (
        f"{history['state'].capitalize()} after {history['rounds']} of {history['rounds_wanted']} rounds with "
        f"{history['reports']} reports of {history['devices']} devices."
    )
    changes = [
        f"{what} {_cell(history[f'{key}_start'])} → {_cell(history[f'{key}_end'])}"
        for key, what in (("loss", "held-out loss"), ("accuracy", "accuracy"))
        if history[f"{key}_start"] is not None and history[f"{key}_end"] is not None
    ]
    reason = "" if history["reason"] is None else f" Reason: {history['reason']}."
    return f"{text}{reason}" + ("" if not changes else f" {', '.join(changes).capitalize()}.")


def _notes(history: dict[str, Any]) -> list[str]:
    notes = [f"{name}: {count} of its contributions were rejected." for name, count in history["rejected"].items()]
    notes += [f"{name} is excluded from this job: {reason}" for name, reason in history["excluded"].items()]
    return notes + [f"{name} runs against the others: {why}" for name, why in history["against_the_others"].items()]


def _table(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {"columns": columns, "rows": [[_cell(row[column]) for column in columns] for row in rows]}


def _cell(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:.{_MOST_DIGITS}g}" if isinstance(value, float) else str(value)
