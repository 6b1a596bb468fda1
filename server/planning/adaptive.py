"""Chooses a round's split and P2: as the job gives them, or from the variances and times of earlier rounds."""

from __future__ import annotations

import collections
import math
import statistics
from typing import TYPE_CHECKING

import msgspec

from edge_runtime.bundle.layout import front_size
from server.job.job import FEWEST_BACK_PERTURBATIONS
from server.storage.records import RoundFigures, RoundPlan

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from edge_runtime.bundle.levels import Level
    from server.job.fitted import FittedJob

_WINDOW = 4
"""Number of the last rounds whose figures are averaged."""
Known = tuple[float, float, float, float]
"""V1, V2, F1, F2: see records.RoundFigures."""


def next_plan(
    fitted: FittedJob,
    round_index: int,
    history: Sequence[RoundFigures],
    levels: Mapping[str, Level] | None = None,
) -> RoundPlan:
    """Return the plan of a round.

    With ``[adaptive]`` in the job, P2 = sqrt(V2·F1 / (V1·F2)), the best P2 for its split, at most twice and at least
    half of the last round's P2. Once each split was tried, the split is the one with the smallest
    (sqrt(V1·F1) + sqrt(V2·F2))², the product of noise and time at its best P2. The plan is a function of the arguments
    alone, so a server that has started again plans the same.

    Args:
        fitted: the job and its bundle.
        round_index: index of the round.
        history: figures of the job's closed rounds, in order.
        levels: the level of each backprop device of the cohort, by name; None: there are none.
    """
    job, manifest = fitted.job, fitted.manifest
    rule, split = job.rule_of(round_index), fitted.split
    stld, chosen = job.stld_of(round_index), dict(levels or {})
    if job.adaptive is None:
        return RoundPlan(split, rule, stld, chosen)
    if job.adaptive.split and len(manifest.splits) > 1:
        split = _choose_split(manifest.splits, split, history)
    p2 = max(FEWEST_BACK_PERTURBATIONS, rule.back_perturbations)
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
        p2 = int(min(max(best, p2 / 2, FEWEST_BACK_PERTURBATIONS), 2 * p2, most) + 0.5)
    return p2


def _complete(history: Sequence[RoundFigures]) -> list[Known]:
    """Return V1, V2, F1, F2 of each round in which all four are known."""
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
