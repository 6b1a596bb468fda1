"""The bandit: which arm each device of a round gets. Pure: states go in and come out, rng and clock are given.

Ours (``thompson``): gains are learned over the fleet (gains.py), times from each device's profile and reports
(step_times.py). A round lasts as long as its slowest device, so its length is chosen first: the one with the largest
drawn gain of the cohort a second, after which every device takes the arm with the largest drawn gain that fits into it.

The others are for comparison. ``paper`` is our reading of DropPEFT's configurator (the body was not available to us):
each device has a pool of arms; it explores those of the pool that it has not tried since the last refresh, then
exploits the one with the largest windowed mean reward (gain a second) for a while; then the worst share of the pool is
replaced by other arms. ``ucb`` (UCB1), ``epsilon`` (ε-greedy), ``uniform`` and ``fixed`` (the largest arm that fits)
are as usual.
"""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from server import gains as gain_model
from server.arms import Arm, Offer
from server.gains import Gains
from server.step_times import (
    DeviceTimes,
    Expected,
    base_seconds,
    expected,
    fleet_overhead_s,
    fleet_s_per_pass,
    observe,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

Policy = Literal["thompson", "paper", "ucb", "epsilon", "uniform", "fixed"]
_SAFE = 0.9  # share of a deadline that an expected time may take


class BanditOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How arms are chosen.

    Attributes:
        policy: see the module.
        discount: what an observation counts after one more round (``thompson``).
        explored_share: share of choices that explore (``epsilon``), of the pool that is replaced (``paper``).
        window: rewards of an arm that count (``paper``, ``ucb``, ``epsilon``), and rounds of exploitation (``paper``).
        pool: arms in a device's pool (``paper``).
    """

    policy: Policy = "thompson"
    discount: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.95
    explored_share: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.2
    window: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 5
    pool: Annotated[int, msgspec.Meta(ge=2, le=64)] = 3


class Pool(msgspec.Struct, frozen=True):
    """``paper``: a device's arms, those of them that are still to be tried, and rounds of exploitation left."""

    arms: list[str]
    untried: list[str]
    exploit_left: int


class Used(msgspec.Struct, frozen=True, array_like=True):
    """A report since the last evaluation: its round, device and arm, its share of the round, its seconds."""

    round: int
    device: str
    arm: str
    share: float
    seconds: float


class BanditState(msgspec.Struct, frozen=True):
    """All that is learned.

    Attributes:
        gains: of the arms, over the fleet.
        times: of each device.
        per_pass: seconds a pass of each device that has reported: stands for those without a profile.
        rewards: by device and arm, the last gains a second.
        pools: of each device.
        used: reports that no evaluation has seen yet.
        loss: the last held-out loss; None: there was none.
    """

    gains: Gains = Gains()
    times: dict[str, DeviceTimes] = {}
    per_pass: dict[str, float] = {}
    rewards: dict[str, dict[str, list[float]]] = {}
    pools: dict[str, Pool] = {}
    used: list[Used] = []
    loss: float | None = None


class Reported(msgspec.Struct, frozen=True):
    """A report that counts.

    Attributes:
        device: who reported.
        arm: what it ran.
        share: its share of the round.
        cost: of the arm, as in its offer.
        base_s: the arm's seconds before reports, as in its estimate.
        reported_s: seconds of the local steps as the device says.
        turnaround_s: seconds from plan to report on the server's clock.
        at_s: that clock.
    """

    device: str
    arm: Arm
    share: float
    cost: float
    base_s: float | None
    reported_s: float
    turnaround_s: float
    at_s: float


class Candidate(msgspec.Struct, frozen=True):
    """A device of the round: its name, its share of the round, and its arms."""

    device: str
    share: float
    offers: list[Offer]


class Estimate(msgspec.Struct, frozen=True, array_like=True):
    """What was thought of an arm when it was chosen or not; ``score`` is what the policy compared."""

    arm: Arm
    cost: float
    base_s: float | None
    round_s: float | None
    source: str
    gain: float | None = None
    gain_sd: float | None = None
    score: float | None = None
    left_out: str | None = None


class Choice(msgspec.Struct, frozen=True, array_like=True):
    """A device's arm in a round, and why. ``arm`` is None where none fits."""

    device: str
    arm: Arm | None
    policy: str
    why: str
    estimates: list[Estimate]

    @property
    def estimate(self) -> Estimate | None:
        """The estimate of the chosen arm."""
        return next((entry for entry in self.estimates if entry.arm == self.arm), None)


class _Open(msgspec.Struct, frozen=True):
    """A device with its arms that may be chosen: their indexes among its estimates."""

    candidate: Candidate
    estimates: list[Estimate]
    free: list[int]


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
            chosen = _thompson(state, able, enough, rng)
        else:
            state, chosen = _each(options, state, able, rng)
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
) -> _Open:
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
    return _Open(candidate, estimates, free)


_Chosen = dict[str, tuple[int, str, list[Estimate]]]


def _seconds(entry: _Open, index: int) -> float:
    """Return an arm's expected seconds; where nothing is known of the whole fleet, its cost stands for them."""
    known = entry.estimates[index].round_s
    return entry.candidate.offers[index].cost if known is None else known


def _thompson(state: BanditState, able: Sequence[_Open], enough: int, rng: np.random.Generator) -> _Chosen:
    column = {name: index for index, name in enumerate(state.gains.arms)}
    known = gain_model.mean_gains(state.gains)
    # One draw for the whole fleet: a round is one choice, and a draw a device would average out.
    drawn = gain_model.draw(state.gains, rng).tolist()
    rows, quickest, marks = [], [], []
    for device, entry in enumerate(able):
        row = {index: (_seconds(entry, index), drawn[column[entry.estimates[index].arm.name]]) for index in entry.free}
        rows.append(row)
        quickest.append(min(seconds for seconds, _ in row.values()))
        marks += [(seconds, device, entry.candidate.share * gain) for seconds, gain in row.values()]
    least_s = sorted(quickest)[min(enough, len(able)) - 1]
    length_s = _best_length(sorted(marks), least_s, len(able))
    chosen: _Chosen = {}
    for entry, row in zip(able, rows, strict=True):
        fits = [index for index, (seconds, _) in row.items() if seconds <= length_s]
        if fits:
            index = max(fits, key=lambda i: (row[i][1], -row[i][0]))
            why = (
                f"largest drawn gain of those that fit {length_s:.3g} s, the round's length with the most gain a second"
            )
        else:
            index = min(row, key=lambda i: row[i][0])
            why = f"its quickest arm; none fits a round of {length_s:.3g} s, which the quicker devices decide"
        estimates = list(entry.estimates)
        for i, (_, gain) in row.items():
            mean, sd = known[column[estimates[i].arm.name]]
            estimates[i] = msgspec.structs.replace(estimates[i], gain=mean, gain_sd=sd, score=gain)
        chosen[entry.candidate.device] = (index, why, estimates)
    return chosen


def _best_length(marks: Sequence[tuple[float, int, float]], least_s: float, devices: int) -> float:
    """Return the length of a round with the most gain a second, at least ``least_s``.

    Args:
        marks: (seconds, device, share × gain) of every arm that may be chosen, ascending.
        least_s: the shortest that lets enough devices report.
        devices: how many there are.
    """
    best = [0.0] * devices
    total, best_rate, length_s = 0.0, -1.0, least_s
    for position, (seconds, device, gain) in enumerate(marks):
        if gain > best[device]:
            total += gain - best[device]
            best[device] = gain
        last_of_its_length = position + 1 == len(marks) or marks[position + 1][0] > seconds
        if seconds >= least_s and last_of_its_length and total > best_rate * seconds:
            best_rate, length_s = total / seconds, seconds
    return length_s


def _each(
    options: BanditOptions, state: BanditState, able: Sequence[_Open], rng: np.random.Generator
) -> tuple[BanditState, _Chosen]:
    """Choose device by device, by the gains a second that the device has seen."""
    chosen: _Chosen = {}
    pools = dict(state.pools)
    for entry in able:
        device = entry.candidate.device
        rewards = state.rewards.get(device, {})
        names = {entry.estimates[index].arm.name: index for index in entry.free}
        means = {name: statistics.fmean(rewards[name]) for name in names if rewards.get(name)}
        scores: dict[str, float] = {}
        if options.policy == "fixed":
            index, why = max(entry.free, key=lambda i: entry.candidate.offers[i].cost), "the largest"
        elif options.policy == "uniform":
            index, why = entry.free[int(rng.integers(len(entry.free)))], "at random"
        elif options.policy == "epsilon":
            index, why, scores = *_epsilon(options, names, means, rng), means
        elif options.policy == "ucb":
            scores = _ucb(rewards, means)
            index, why = _untried_or_best(names, scores)
        else:
            pools[device], index, why = _paper(options, pools.get(device), names, means, rng)
            scores = means
        estimates = [
            msgspec.structs.replace(estimate, score=scores.get(estimate.arm.name)) for estimate in entry.estimates
        ]
        chosen[device] = (index, why, estimates)
    return msgspec.structs.replace(state, pools=pools), chosen


def _untried_or_best(names: Mapping[str, int], scores: Mapping[str, float]) -> tuple[int, str]:
    untried = [name for name in names if name not in scores]
    if untried:
        return names[untried[0]], "not tried yet"
    return names[max(scores, key=lambda name: scores[name])], "the best so far"


def _epsilon(
    options: BanditOptions, names: Mapping[str, int], means: Mapping[str, float], rng: np.random.Generator
) -> tuple[int, str]:
    if rng.random() < options.explored_share:
        return list(names.values())[int(rng.integers(len(names)))], "explores"
    return _untried_or_best(names, means)


def _ucb(rewards: Mapping[str, list[float]], means: Mapping[str, float]) -> dict[str, float]:
    """Return UCB1 scores, rewards scaled by the largest mean."""
    counts = {name: len(rewards[name]) for name in means}
    total, unit = sum(counts.values()), max((abs(mean) for mean in means.values()), default=0.0) or 1.0
    return {name: means[name] / unit + math.sqrt(2 * math.log(max(total, 2)) / counts[name]) for name in means}


def _paper(
    options: BanditOptions,
    pool: Pool | None,
    names: Mapping[str, int],
    means: Mapping[str, float],
    rng: np.random.Generator,
) -> tuple[Pool, int, str]:
    size = min(options.pool, len(names))
    arms = [] if pool is None else [name for name in pool.arms if name in names]
    untried = [] if pool is None else [name for name in pool.untried if name in names]
    left = 0 if pool is None else pool.exploit_left
    if len(arms) < size or (not untried and left <= 0):  # a new device, an arm that vanished, or time to refresh
        keep = max(1, size - math.ceil(options.explored_share * size))
        arms = sorted(arms, key=lambda name: -means.get(name, 0.0))[:keep]
        others = [name for name in names if name not in arms]
        fresh = [others[int(i)] for i in rng.permutation(len(others))[: size - len(arms)]]
        arms, untried, left = arms + fresh, fresh, options.window
    if untried:
        return Pool(arms, untried[1:], left), names[untried[0]], "explores an arm that is new in its pool"
    best = max(arms, key=lambda name: means.get(name, 0.0))
    return Pool(arms, [], left - 1), names[best], "exploits the best of its pool"


def observe_reports(state: BanditState, round_index: int, reports: Sequence[Reported]) -> BanditState:
    """Return the state after the reports of a round that count."""
    times, per_pass, used = dict(state.times), dict(state.per_pass), list(state.used)
    for report in reports:
        before = times.get(report.device)
        after = observe(
            before, report.arm.name, report.base_s, report.reported_s, report.turnaround_s, report.at_s, report.device
        )
        if after is before or after.reported_at is None:
            continue
        times[report.device] = after
        per_pass[report.device] = min(report.reported_s, report.turnaround_s) / report.cost
        used.append(Used(round_index, report.device, report.arm.name, report.share, report.turnaround_s))
    return msgspec.structs.replace(state, times=times, per_pass=per_pass, used=used)


def observe_loss(options: BanditOptions, state: BanditState, round_index: int | None, loss: float) -> BanditState:
    """Return the state after an evaluation: of a round's adapter, or (None) of the one the job starts from."""
    if round_index is None or state.loss is None or not math.isfinite(loss):
        return msgspec.structs.replace(state, loss=loss if math.isfinite(loss) else state.loss)
    seen = [entry for entry in state.used if entry.round <= round_index]
    later = [entry for entry in state.used if entry.round > round_index]
    gain = state.loss - loss
    use: dict[str, float] = {}
    spent: dict[str, float] = {}
    for entry in seen:
        use[entry.arm] = use.get(entry.arm, 0.0) + entry.share
        spent[entry.device] = spent.get(entry.device, 0.0) + entry.seconds
    rewards = dict(state.rewards)
    for entry in seen if options.policy in ("paper", "ucb", "epsilon") else ():
        mine = dict(rewards.get(entry.device, {}))
        mine[entry.arm] = [*mine.get(entry.arm, []), gain / max(spent[entry.device], 1e-9)][-options.window :]
        rewards[entry.device] = mine
    learned = gain_model.observe_gain(state.gains, use, gain, options.discount) if state.gains.arms else state.gains
    return msgspec.structs.replace(state, gains=learned, rewards=rewards, used=later, loss=loss)


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


def expected_s(choices: Sequence[Choice], enough: int) -> float | None:
    """Return how long the round is expected to take: until the slowest of the ``enough`` quickest reports.

    None: not known.
    """
    known = [choice.estimate.round_s for choice in choices if choice.estimate is not None]
    times = sorted(seconds for seconds in known if seconds is not None)
    if not times or len(times) < len(known):
        return None
    return times[min(enough, len(times)) - 1]
