"""Two jobs side by side: what each reached after each round, and what it cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edge_runtime import output
from server.views.summary import job_rounds, job_summary
from server.views.tables import short

if TYPE_CHECKING:
    from server.storage.ledger import Ledger

_TOTALS = (
    "state",
    "rounds",
    "devices",
    "reports",
    "loss_start",
    "loss_end",
    "accuracy_start",
    "accuracy_end",
    "front_passes",
    "back_passes",
    "bytes_up_per_device_round",
    "bytes_down_per_device_round",
    "epsilon",
    "bundle_sha256",
)


def compare_jobs(ledger: Ledger, first: str, second: str) -> dict[str, Any]:
    """Return ``jobs`` (both names), ``totals`` (a list with one object for each figure) and ``rounds``.

    A round has both jobs' held-out loss and accuracy after it, and the seconds of its slowest report. Unknown is None.

    Args:
        ledger: the ledger.
        first: name of a job.
        second: name of another one.

    Raises:
        NoSuchJobError: there is no such job.
    """
    names = (first, second)
    summaries = [job_summary(ledger, name) for name in names]
    made = [{row["round"]: row for row in job_rounds(ledger, name) if row["state"] == "aggregated"} for name in names]
    rounds = []
    for index in sorted(made[0].keys() | made[1].keys()):
        row: dict[str, Any] = {"round": index}
        for key in ("loss", "accuracy", "slowest_s"):
            row[key] = [of_job[index][key] if index in of_job else None for of_job in made]
        rounds.append(row)
    totals = [{"figure": key, "values": [summary[key] for summary in summaries]} for key in _TOTALS]
    return {"jobs": list(names), "totals": totals, "rounds": rounds}


def comparison_text(compared: dict[str, Any]) -> str:
    """Return a comparison as two tables: the totals, and the rounds."""
    first, second = compared["jobs"]
    totals = [[total["figure"], *map(short, total["values"])] for total in compared["totals"]]
    columns = ["round", *(f"{key} {name}" for key in ("loss", "accuracy", "slowest_s") for name in (first, second))]
    rounds = [
        [row["round"], *(short(value) for key in ("loss", "accuracy", "slowest_s") for value in row[key])]
        for row in compared["rounds"]
    ]
    return f"{output.table(['', first, second], totals)}\n\n{output.table(columns, rounds)}"
