"""The policies: how each device's arm is chosen among the arms that it can run.

``thompson`` is ours: it learns gains over the fleet (gains.py), and times from each device's profile and reports
(step_times.py). A round lasts as long as its slowest device, so the policy first chooses the round's length: the one
with the largest drawn gain of the cohort per second. Each device then gets the arm with the largest drawn gain that
fits into that length.

The others are for comparison. ``paper`` is our reading of DropPEFT's configurator (the paper's body was not available
to us): each device has a pool of arms; it explores the arms of the pool that it has not tried since the last refresh,
then exploits the one with the largest mean reward (gain per second) within a window; then other arms replace the worst
share of the pool. ``ucb`` is UCB1 and ``epsilon`` is ε-greedy, both in the usual form; ``uniform`` chooses at random,
``fixed`` the largest arm that fits.
"""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING

import msgspec

from server.bandit import gains as gain_model
from server.bandit.choices import Candidate, Estimate
from server.bandit.state import BanditState, Pool

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from server.bandit.options import BanditOptions


class Open(msgspec.Struct, frozen=True):
    """A device, the estimates of its arms, and (``free``) the indexes of those that may be chosen."""

    candidate: Candidate
    estimates: list[Estimate]
    free: list[int]


Chosen = dict[str, tuple[int, str, list[Estimate]]]
"""By device: the index of the chosen arm, why it was chosen, and the estimates with their scores."""


def _seconds(entry: Open, index: int) -> float:
    """Return an arm's expected seconds; its cost where no device's times are known."""
    known = entry.estimates[index].round_s
    return entry.candidate.arms[index].cost if known is None else known


def thompson(state: BanditState, able: Sequence[Open], enough: int, rng: np.random.Generator) -> Chosen:
    """Choose the round's length, and for each device the best arm that fits into it (see the module)."""
    column = {name: index for index, name in enumerate(state.gains.arms)}
    known = gain_model.mean_gains(state.gains)
    # One draw for the whole fleet: a round is one choice, and separate draws per device would average out.
    drawn = gain_model.draw(state.gains, rng).tolist()
    rows, quickest, marks = [], [], []
    for device, entry in enumerate(able):
        row = {index: (_seconds(entry, index), drawn[column[entry.estimates[index].arm.name]]) for index in entry.free}
        rows.append(row)
        quickest.append(min(seconds for seconds, _ in row.values()))
        marks += [(seconds, device, entry.candidate.share * gain) for seconds, gain in row.values()]
    least_s = sorted(quickest)[min(enough, len(able)) - 1]
    length_s = _best_length(sorted(marks), least_s, len(able))
    chosen: Chosen = {}
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
    """Return the length of a round with the most gain per second, in seconds.

    Args:
        marks: (seconds, index of the device, share × gain) of every arm that may be chosen, ascending.
        least_s: the shortest length within which enough devices can report.
        devices: number of devices.
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


def each_by_itself(
    options: BanditOptions, state: BanditState, able: Sequence[Open], rng: np.random.Generator
) -> tuple[BanditState, Chosen]:
    """Choose each device's arm on its own, by the gains per second that the device has seen."""
    chosen: Chosen = {}
    pools = dict(state.pools)
    for entry in able:
        device = entry.candidate.device
        rewards = state.rewards.get(device, {})
        names = {entry.estimates[index].arm.name: index for index in entry.free}
        means = {name: statistics.fmean(rewards[name]) for name in names if rewards.get(name)}
        scores: dict[str, float] = {}
        if options.policy == "fixed":
            index, why = max(entry.free, key=lambda i: entry.candidate.arms[i].cost), "the largest"
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
    """Return UCB1 scores; rewards are divided by the largest mean."""
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
