"""The bandit: chooses the arm of each device of a round. Pure: rng, clock and state are arguments.

``state.py`` has what the bandit knows, ``policies.py`` how it uses that, ``choices.py`` the record of a choice.
"""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING

import msgspec

from edge_runtime.bundle.levels import rank
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

_SAFE = 0.9
"""An arm is left out where its expected time is above this share of the deadline: times vary from round to round."""


def choose(
    options: BanditOptions,
    state: BanditState,
    candidates: Sequence[Candidate],
    enough: int,
    deadline_s: float,
    now: float,
    rng: np.random.Generator,
) -> tuple[BanditState, list[Choice]]:
    """Choose the arms of a round, with one split for all its forward-only devices: a round's log has one split.

    Where the arms have several splits, the choice is made for each of them, and the one with the largest drawn gain
    per second is returned; only ``thompson`` draws gains.

    Args:
        options: the policy and its parameters.
        state: what the bandit knows.
        candidates: the devices of the cohort; their shares add up to 1.
        enough: number of reports that end the round; slower devices are not waited for.
        deadline_s: deadline of the round; an arm that is not expected to meet it is left out.
        now: seconds of the server's clock, as in Reported.
        rng: source of every random choice.

    Returns:
        The state after the choice, and one choice per candidate, in their order.
    """
    splits = sorted({priced.arm.split for c in candidates for priced in c.arms if priced.arm.split is not None})
    tries = [candidates] if len(splits) < 2 else [_at_split(candidates, split) for split in splits]
    found = [_choose(options, state, tried, enough, deadline_s, now, rng) for tried in tries]
    return max(found, key=lambda made: _rate(candidates, made[1], enough))


def _choose(
    options: BanditOptions,
    state: BanditState,
    candidates: Sequence[Candidate],
    enough: int,
    deadline_s: float,
    now: float,
    rng: np.random.Generator,
) -> tuple[BanditState, list[Choice]]:
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
    """Return the prior gain of every arm by name: its cost over the largest cost of its kind.

    So every arm of a kind has the same prior gain per second.
    """
    costs: dict[Arm, float] = {}
    for candidate in candidates:
        for priced in candidate.arms:
            costs[priced.arm] = priced.cost
    largest = {
        kind: max((c for a, c in costs.items() if a.kind == kind), default=1.0) for kind in ("backprop", "forward")
    }
    return {arm.name: costs[arm] / largest[arm.kind] for arm in sorted(costs, key=_order)}


def _order(arm: Arm) -> tuple[str, int, bool, int, int, bool]:
    return arm.kind, *rank(arm.level or 0), arm.split or 0, arm.back_perturbations or 0, arm.front_is_frozen


def _with_fleet(state: BanditState, candidates: Sequence[Candidate]) -> list[tuple[Candidate, list[float | None]]]:
    unit = fleet_s_per_pass(state.per_pass)
    if unit is None:  # in the first round, the profiles of other devices are all that is known
        known = [
            priced.profile_s / priced.cost for c in candidates for priced in c.arms if priced.profile_s is not None
        ]
        unit = statistics.median(known) if known else None
    return [(candidate, base_seconds(candidate.arms, unit)) for candidate in candidates]


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
    for index, (priced, base_s) in enumerate(zip(candidate.arms, bases, strict=True)):
        found: Expected = expected(priced, base_s, times, now, overhead_s)
        left_out = priced.left_out
        if left_out is None and found.round_s is not None and found.round_s > _SAFE * deadline_s:
            left_out = f"expected to take {found.round_s:.1f} s, the deadline is {deadline_s:.1f} s"
        estimates.append(
            Estimate(
                priced.arm,
                priced.cost,
                base_s,
                found.round_s,
                found.source,
                left_out=left_out,
                front_share=priced.front_share,
            )
        )
        if left_out is None:
            free.append(index)
    return Open(candidate, estimates, free)


def _at_split(candidates: Sequence[Candidate], split: int) -> list[Candidate]:
    reason = f"this round is at split {split}"
    return [
        Candidate(
            candidate.device,
            candidate.share,
            [
                priced
                if priced.arm.split in (None, split) or priced.left_out is not None
                else msgspec.structs.replace(priced, left_out=reason)
                for priced in candidate.arms
            ],
        )
        for candidate in candidates
    ]


def _rate(candidates: Sequence[Candidate], choices: Sequence[Choice], enough: int) -> float:
    """Return the drawn gain per second of a round; an arm without a time counts by its cost."""
    share = {candidate.device: candidate.share for candidate in candidates}
    known = [choice.estimate for choice in choices]
    times = sorted(entry.cost if entry.round_s is None else entry.round_s for entry in known if entry is not None)
    if not times:
        return 0.0
    gain = math.fsum(
        share[choice.device] * (choice.estimate.score or 0.0) for choice in choices if choice.estimate is not None
    )
    return gain / times[min(enough, len(times)) - 1]
