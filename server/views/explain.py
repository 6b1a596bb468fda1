"""Why a device got its work: what the ledger says of the bandit's choices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from edge_runtime import output
from server.bandit.choices import Choice
from server.errors import JobError
from server.storage.records import RoundPlan

if TYPE_CHECKING:
    from server.storage.ledger import Ledger


def explain(ledger: Ledger, job: str | None, index: int, device: str) -> dict[str, Any]:
    """Return the choice for a device in the last attempt at a round, with all arms.

    Args:
        ledger: the ledger.
        job: name of the job; None: the newest.
        index: index of the round.
        device: name of the device.

    Raises:
        JobError: there is no such job, or no choice was made for the device in this round.
    """
    jobs = ledger.rows("SELECT name FROM jobs ORDER BY created_at DESC, rowid DESC")
    name = job or (jobs[0]["name"] if jobs else None)
    if name is None or name not in {row["name"] for row in jobs}:
        raise JobError(f"there is no job {name or ''}".rstrip(), "see: covey job list")
    rows = ledger.rows(
        "SELECT attempt, choice FROM choices WHERE job = ? AND round = ? AND device = ? ORDER BY attempt DESC LIMIT 1",
        name,
        index,
        device,
    )
    if not rows:
        reason = _why_ineligible(ledger, name, index, device)
        if reason is not None:
            raise JobError(
                f"{device} took no work in round {index} of job {name}: {reason}", "see [eligibility] in its edge.toml"
            )
        raise JobError(
            f"job {name} made no choice for {device} in round {index}",
            "it was not in the cohort, or the job has no [bandit]; see: covey job show",
        )
    choice = msgspec.msgpack.decode(rows[0]["choice"], type=Choice)
    took = ledger.rows(
        "SELECT state, seconds FROM offers WHERE job = ? AND round = ? AND attempt = ? AND device = ?",
        name,
        index,
        rows[0]["attempt"],
        device,
    )
    return {
        "job": name,
        "round": index,
        "attempt": rows[0]["attempt"],
        "device": device,
        "policy": choice.policy,
        "arm": None if choice.arm is None else choice.arm.name,
        "why": choice.why,
        "outcome": took[0]["state"] if took else None,
        "reported_s": took[0]["seconds"] if took else None,
        "arms": [
            {
                "arm": estimate.arm.name,
                "expected_s": estimate.round_s,
                "time_from": estimate.source,
                "gain": estimate.gain,
                "gain_sd": estimate.gain_sd,
                "score": estimate.score,
                "left_out": estimate.left_out,
            }
            for estimate in choice.estimates
        ],
    }


def _why_ineligible(ledger: Ledger, job: str, index: int, device: str) -> str | None:
    """Return why a device that was there took no work in the last attempt at a round; None: not known."""
    rows = ledger.rows("SELECT plan FROM rounds WHERE job = ? AND round = ? ORDER BY attempt DESC LIMIT 1", job, index)
    return msgspec.json.decode(rows[0]["plan"], type=RoundPlan).ineligible.get(device) if rows else None


def explanation_text(found: dict[str, Any]) -> str:
    """Return an explanation as a person reads it."""
    head = [f"{key:12} {'-' if value is None else value}" for key, value in found.items() if key != "arms"]
    columns = ("arm", "expected_s", "time_from", "gain", "gain_sd", "score", "left_out")
    rows = [
        [f"{cell:.4g}" if isinstance(cell := arm[column], float) else cell for column in columns]
        for arm in found["arms"]
    ]
    return "\n".join(head) + "\n\n" + output.table(columns, rows)
