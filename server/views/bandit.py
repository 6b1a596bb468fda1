"""What a job's bandit has chosen, by round, and what it knew of each arm in its last round."""

from __future__ import annotations

import collections
import statistics
from typing import TYPE_CHECKING, Any

from server.errors import NoSuchJobError
from server.storage import fleet_queries, queries

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from server.bandit.choices import Choice, Estimate
    from server.storage.ledger import Ledger

NO_ARM = "no arm fits"


def bandit_shown(ledger: Ledger, job: str) -> dict[str, Any]:
    """Return a job's bandit; without one, or before its first choice, the lists are empty. Unknown is None.

    ``arm_list`` has each arm's estimates in the last attempt, as means over the devices that it was considered for, and
    how often it was chosen at all; ``round_list`` the choices by round and arm; ``choice_list`` the last attempt's.

    Raises:
        NoSuchJobError: there is no such job.
    """
    record = queries.find_job(ledger, job)
    if record is None:
        raise NoSuchJobError(job)
    arms = fleet_queries.arms_by_round(ledger, job)
    chosen: dict[int, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for index, _attempt, arm in arms:
        chosen[index][arm or NO_ARM] += 1
    newest = arms[-1][:2] if arms else None
    last = [] if newest is None else queries.choices_of(ledger, job, *newest)
    total = sum(chosen.values(), collections.Counter())
    state = queries.bandit_state(ledger, job)
    return {
        "job": job,
        "options": record.config.get("bandit"),
        "evaluations_seen": None if state is None else state.gains.seen,
        "last_round": None if newest is None else newest[0],
        "arms": sorted(total),
        "arm_list": _estimates(last, total),
        "round_list": [{"round": index, "chosen": dict(counts)} for index, counts in sorted(chosen.items())],
        "choice_list": [{"device": choice.device, "arm": _arm(choice), "why": choice.why} for choice in last],
    }


def _arm(choice: Choice) -> str:
    return NO_ARM if choice.arm is None else choice.arm.name


def _estimates(last: Sequence[Choice], total: collections.Counter[str]) -> list[dict[str, Any]]:
    by_arm: dict[str, list[Estimate]] = collections.defaultdict(list)
    for choice in last:
        for estimate in choice.estimates:
            by_arm[estimate.arm.name].append(estimate)
    now = collections.Counter(_arm(choice) for choice in last)
    return [
        {
            "arm": name,
            "chosen": total[name],
            "chosen_last_round": now[name],
            "devices": len(estimates),
            "left_out": sum(one.left_out is not None for one in estimates),
            "round_s": _mean(one.round_s for one in estimates),
            "gain": _mean(one.gain for one in estimates),
            "gain_sd": _mean(one.gain_sd for one in estimates),
            "score": _mean(one.score for one in estimates),
        }
        for name, estimates in sorted(by_arm.items())
    ]


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
