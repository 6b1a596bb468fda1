"""What the next round asks: split and rule, by the job or by what the last rounds measured."""

from __future__ import annotations

import collections
import math
import statistics
from typing import TYPE_CHECKING

import msgspec

from edge_runtime.backprop.layer_draw import Stld
from edge_runtime.bundle.layout import front_size
from edge_runtime.protocol.step_rule import StepRule, rule_with
from server.rounds.merge import MergeFigures

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from edge_runtime.bundle.manifest import Manifest
    from server.job.job import Job

_WINDOW = 4
Known = tuple[float, float, float, float]
_FEWEST = 2  # one back direction says nothing of the spread within a front direction


class RoundPlan(msgspec.Struct, frozen=True):
    """What the devices of a round do.

    Attributes:
        split: of the forward-only devices.
        rule: of the forward-only devices.
        stld: of the backprop devices; None: there are none in this job.
        levels: the level of each backprop device, by name; the others are forward-only.
        back_perturbations: P2 of each forward-only device that has another one than the rule's, by name.
        length_s: seconds from the offer to the last report that counts; None: the job's deadline.
        ineligible: devices that were here but took no work by their owner's rules, and why.
    """

    split: int
    rule: StepRule
    stld: Stld | None = None
    levels: dict[str, int] = {}
    back_perturbations: dict[str, int] = {}
    length_s: float | None = None
    ineligible: dict[str, str] = {}

    def rule_of(self, device: str) -> StepRule:
        """Return the rule of a forward-only device."""
        return rule_with(self.rule, self.back_perturbations.get(device))

    def deadline_s(self, job: Job) -> float:
        """Return how long reports of the round count."""
        return job.deadline_s if self.length_s is None else min(self.length_s, job.deadline_s)


class RoundFigures(msgspec.Struct, frozen=True):
    """What a round showed of its blocks. Unknown is None.

    Attributes:
        split: index of the back block's first layer.
        front_variance: V1, the variance that front directions cause in the scalars.
        back_variance: V2, the variance that back directions cause.
        front_s: F1, seconds of a front pass: the median over devices.
        back_s: F2, seconds of a back pass.
        merge: how the two kinds of devices were merged; None where no device backpropagated.
    """

    split: int
    front_variance: float | None
    back_variance: float | None
    front_s: float | None
    back_s: float | None
    merge: MergeFigures | None = None


def variances(rule: StepRule, steps: Sequence[Sequence[float]]) -> tuple[float | None, float | None]:
    """Estimate V1 and V2 from scalars.

    A scalar of the nested variant is a front term, the same for all P2 scalars of a front direction, plus a back term;
    both have mean zero over directions. So the spread within these groups is V2, and the mean square of the groups'
    means is V1 + V2 / P2. (Design, section 5; ours.)

    Args:
        rule: the rule of the steps.
        steps: the scalars of each step of each device.

    Returns:
        V1 (not below 0) and V2; None where the rule does not show them.
    """
    p2 = rule.back_perturbations
    if rule.variant != "nested" or p2 < _FEWEST or not steps:
        return None, None
    groups = [step[start : start + p2] for step in steps for start in range(0, len(step), p2)]
    within = math.fsum(statistics.variance(group) for group in groups) / len(groups)
    means = math.fsum(statistics.fmean(group) ** 2 for group in groups) / len(groups)
    return max(0.0, means - within / p2), within


def next_plan(
    job: Job,
    manifest: Manifest,
    round_index: int,
    history: Sequence[RoundFigures],
    levels: Mapping[str, int] | None = None,
) -> RoundPlan:
    """Return the plan of a round.

    With ``[adaptive]`` in the job: P2 = sqrt(V2·F1 / (V1·F2)), the best for its split, at most twice or half of the
    round before; and the split with the smallest (sqrt(V1·F1) + sqrt(V2·F2))², the product of noise and time at its
    best P2, after each was tried once. A function of its arguments, so a server that starts anew plans the same.

    Args:
        job: the job, its split filled in.
        manifest: the bundle's manifest.
        round_index: index of the round.
        history: figures of the job's closed rounds, in order.
        levels: the level of each backprop device of the cohort; None: there are none.
    """
    assert job.split is not None  # noqa: S101 fit_to_bundle has run
    rule, split = job.rule_of(round_index), job.split
    stld, chosen = job.stld_of(round_index), dict(levels or {})
    if job.adaptive is None:
        return RoundPlan(split, rule, stld, chosen)
    if job.adaptive.split and len(manifest.splits) > 1:
        split = _choose_split(manifest.splits, split, history)
    p2 = max(_FEWEST, rule.back_perturbations)
    if job.adaptive.back_perturbations and front_size(manifest.parameters, split) > 0:
        p2 = _best_back_perturbations(split, p2, job.adaptive.most_back_perturbations, history)
    return RoundPlan(split, msgspec.structs.replace(rule, back_perturbations=p2), stld, chosen)


def _choose_split(splits: Sequence[int], default: int, history: Sequence[RoundFigures]) -> int:
    untried = [split for split in splits if not any(figures.split == split for figures in history)]
    if untried:
        return untried[0]
    costs = {}
    for split in splits:
        last = _complete([figures for figures in history if figures.split == split])[-_WINDOW:]
        if last:
            v1, v2, f1, f2 = _mean(last)
            costs[split] = (math.sqrt(v1 * f1) + math.sqrt(v2 * f2)) ** 2
    return min(costs, key=lambda split: costs[split]) if costs else default


def _best_back_perturbations(split: int, start: int, most: int, history: Sequence[RoundFigures]) -> int:
    p2, last = min(start, most), collections.deque[Known](maxlen=_WINDOW)
    for figures in history:
        if figures.split != split:
            continue
        last.extend(_complete([figures]))
        if not last:
            continue
        v1, v2, f1, f2 = _mean(last)
        best = math.sqrt(v2 * f1 / (v1 * f2)) if v1 > 0 and f2 > 0 else math.inf
        p2 = int(min(max(best, p2 / 2, _FEWEST), 2 * p2, most) + 0.5)
    return p2


def _complete(history: Sequence[RoundFigures]) -> list[Known]:
    """Return V1, V2, F1, F2 of the rounds that know all four."""
    return [
        (f.front_variance, f.back_variance, f.front_s, f.back_s)
        for f in history
        if f.front_variance is not None
        and f.back_variance is not None
        and f.front_s is not None
        and f.back_s is not None
    ]


def _mean(rows: Iterable[Known]) -> Known:
    v1, v2, f1, f2 = (statistics.fmean(column) for column in zip(*rows, strict=True))
    return v1, v2, f1, f2
