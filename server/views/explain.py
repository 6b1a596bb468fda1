"""Explains why a device was given its arm, from the bandit's choices in the ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edge_runtime import output
from server.errors import JobError, NoSuchJobError
from server.storage import queries

if TYPE_CHECKING:
    from server.storage.ledger import Ledger


def explain(ledger: Ledger, job: str | None, index: int, device: str) -> dict[str, Any]:
    """Return the bandit's choice for a device in the last attempt at a round, with the estimates of all arms.

    Args:
        ledger: the ledger.
        job: name of the job; None: the newest job.
        index: index of the round.
        device: name of the device.

    Raises:
        JobError: there is no such job, or the bandit made no choice for the device in this round.
    """
    name = job or queries.newest_job(ledger)
    if name is None:
        raise JobError("there is no job yet", "see: covey job submit --help")
    if queries.find_job(ledger, name) is None:
        raise NoSuchJobError(name)
    found = queries.last_choice(ledger, name, index, device)
    if found is None:
        reason = _why_ineligible(ledger, name, index, device)
        if reason is not None:
            raise JobError(
                f"{device} took no work in round {index} of job {name}: {reason}", "see [eligibility] in its edge.toml"
            )
        raise JobError(
            f"job {name} made no choice for {device} in round {index}",
            "it was not in the cohort, or the job has no [bandit]; see: covey job show",
        )
    attempt, choice = found
    state, reported_s = queries.outcome_of(ledger, name, index, attempt, device) or (None, None)
    return {
        "job": name,
        "round": index,
        "attempt": attempt,
        "device": device,
        "policy": choice.policy,
        "arm": None if choice.arm is None else choice.arm.name,
        "why": choice.why,
        "outcome": state,
        "reported_s": reported_s,
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
    """Return why a device's owner did not let it train in the last attempt at a round; None: not known."""
    plan = queries.last_plan(ledger, job, index)
    return None if plan is None else plan.ineligible.get(device)


def explanation_text(found: dict[str, Any]) -> str:
    """Return an explanation as text."""
    head = [f"{key:12} {'-' if value is None else value}" for key, value in found.items() if key != "arms"]
    columns = ("arm", "expected_s", "time_from", "gain", "gain_sd", "score", "left_out")
    rows = [
        [f"{cell:.4g}" if isinstance(cell := arm[column], float) else cell for column in columns]
        for arm in found["arms"]
    ]
    return "\n".join(head) + "\n\n" + output.table(columns, rows)
