"""The bandit: which arm each device of a round gets. Pure: states go in and come out, rng and clock are given.

What is known is in bandit_state.py, how it is used in policies.py, what was chosen and why in choices.py.
"""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING

import msgspec

from server.bandit import gains as gain_model
from server.bandit.choices import Candidate, Choice, Estimate
from server.bandit.policies import Open, each_by_itself, thompson
from server.bandit.step_times import Expected, base_seconds, expected, fleet_overhead_s, fleet_s_per_pass

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from server.bandit.arms import Arm
    from server.bandit.options import BanditOptions
    from server.bandit.state import BanditState

_SAFE = 0.9  # share of a deadline that an expected time may take


def choose(
    options: BanditOptions,
    state: BanditState,
    candidates: Sequence[Candidate],
    enough: int,
    deadline_s: float,
    now: float,
    rng: np.random.Generator,
) -> tuple[BanditState, list[Choice]]:
    """Choose the arms of a round.

    Args:
        options: how.
        state: what is known.
        candidates: the devices of the cohort; their shares add up to 1.
        enough: how many reports end the round: the slowest beyond them are not waited for.
        deadline_s: of the round; an arm that is not expected to make it is not offered.
        now: the server's clock, as in Reported.
        rng: every random choice.

    Returns:
        The state after it, and a choice a candidate, in their order.
    """
    priors = _priors(candidates)
    state = msgspec.structs.replace(state, gains=gain_model.with_arms(state.gains, priors))
    overhead_s = fleet_overhead_s(state.times.values())
    opened = [_open(state, candidate, overhead_s, deadline_s, now) for candidate in _with_fleet(state, candidates)]
    able = [entry for entry in opened if entry.free]
    chosen = {}
    if able:
        if options.policy == "thompson":
            chosen = thompson(state, able, enough, rng)
        else:
            state, chosen = each_by_itself(options, state, able, rng)
    choices = []
    for entry in opened:
        device = entry.candidate.device
        if device in chosen:
            index, why, estimates = chosen[device]
            choices.append(Choice(device, estimates[index].arm, options.policy, why, estimates))
        else:
            choices.append(Choice(device, None, options.policy, "no arm fits this device", entry.estimates))
    return state, choices


def _priors(candidates: Sequence[Candidate]) -> dict[str, float]:
    """Return a prior gain of every arm: its share of the largest cost of its kind, so that none is better a second."""
    costs: dict[Arm, float] = {}
    for candidate in candidates:
        for made in candidate.offers:
            costs[made.arm] = made.cost
    largest = {
        kind: max((c for a, c in costs.items() if a.kind == kind), default=1.0) for kind in ("backprop", "forward")
    }
    return {arm.name: costs[arm] / largest[arm.kind] for arm in sorted(costs, key=_order)}


def _order(arm: Arm) -> tuple[str, int, int, int]:
    return arm.kind, arm.level or 0, arm.split or 0, arm.back_perturbations or 0


def _with_fleet(state: BanditState, candidates: Sequence[Candidate]) -> list[tuple[Candidate, list[float | None]]]:
    unit = fleet_s_per_pass(state.per_pass)
    if unit is None:  # the first round: a profile of another device is better than nothing
        known = [made.profile_s / made.cost for c in candidates for made in c.offers if made.profile_s is not None]
        unit = statistics.median(known) if known else None
    return [(candidate, base_seconds(candidate.offers, unit)) for candidate in candidates]


def _open(
    state: BanditState,
    based: tuple[Candidate, list[float | None]],
    overhead_s: float,
    deadline_s: float,
    now: float,
) -> Open:
    candidate, bases = based
    times = state.times.get(candidate.device)
    estimates, free = [], []
    for index, (made, base_s) in enumerate(zip(candidate.offers, bases, strict=True)):
        found: Expected = expected(made, base_s, times, now, overhead_s)
        left_out = made.left_out
        if left_out is None and found.round_s is not None and found.round_s > _SAFE * deadline_s:
            left_out = f"expected to take {found.round_s:.1f} s, the deadline is {deadline_s:.1f} s"
        estimates.append(Estimate(made.arm, made.cost, base_s, found.round_s, found.source, left_out=left_out))
        if left_out is None:
            free.append(index)
    return Open(candidate, estimates, free)


def choose_at_best_split(
    options: BanditOptions,
    state: BanditState,
    candidates: Sequence[Candidate],
    enough: int,
    deadline_s: float,
    now: float,
    rng: np.random.Generator,
) -> tuple[BanditState, list[Choice]]:
    """Choose as choose does, with one split for all forward-only devices of the round: its log has one.

    With several, each is tried in thought, and the one with the most gain a second is taken; ``thompson`` only.
    """
    splits = sorted({made.arm.split for c in candidates for made in c.offers if made.arm.split is not None})
    tries = [candidates] if len(splits) < 2 else [_at_split(candidates, split) for split in splits]
    found = [choose(options, state, tried, enough, deadline_s, now, rng) for tried in tries]
    return max(found, key=lambda made: _rate(candidates, made[1], enough))


def _at_split(candidates: Sequence[Candidate], split: int) -> list[Candidate]:
    reason = f"this round is at split {split}"
    return [
        Candidate(
            candidate.device,
            candidate.share,
            [
                made
                if made.arm.split in (None, split) or made.left_out is not None
                else msgspec.structs.replace(made, left_out=reason)
                for made in candidate.offers
            ],
        )
        for candidate in candidates
    ]


def _rate(candidates: Sequence[Candidate], choices: Sequence[Choice], enough: int) -> float:
    """Return the drawn gain a second of a round."""
    share = {candidate.device: candidate.share for candidate in candidates}
    known = [choice.estimate for choice in choices]
    times = sorted(entry.cost if entry.round_s is None else entry.round_s for entry in known if entry is not None)
    if not times:
        return 0.0
    gain = math.fsum(
        share[choice.device] * (choice.estimate.score or 0.0) for choice in choices if choice.estimate is not None
    )
    return gain / times[min(enough, len(times)) - 1]
