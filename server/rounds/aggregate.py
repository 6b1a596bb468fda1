"""Aggregates the forward-only reports of a round into its log and its figures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from edge_runtime.bundle.layout import front_size
from edge_runtime.forward_only.replay import compact, with_terms
from edge_runtime.protocol.round_log import DeviceScalars, RoundLog, unpack_scalars
from server.fleet.cohort import shares
from server.job.job import FEWEST_BACK_PERTURBATIONS
from server.job.robust import Robust
from server.rounds.agreement import forward_agreement
from server.rounds.robust_terms import clipped_log, robust_mean_square, robust_terms
from server.storage.records import RoundFigures

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from edge_runtime.bundle.layout import Parameter
    from edge_runtime.protocol.step_rule import StepRule
    from server.job.job import Job
    from server.storage.adapters import RoundBase
    from server.storage.records import RoundPlan, TakenReport


@dataclass(frozen=True)
class Aggregate:
    """What the forward-only reports of a round give.

    Attributes:
        log: turns the old adapter into the new one; its ``result_sha256`` is not filled in yet.
        mean_square: mean square of the cohort's scalars, for the next round's normalisation; None: the rule does not
            normalise by it.
        figures: what the scalars and times showed of the two blocks.
        agreement: the cosine of each device's path with the others'; see agreement.py.
    """

    log: RoundLog
    mean_square: float | None
    figures: RoundFigures
    agreement: dict[str, float]


def aggregate(
    parameters: Sequence[Parameter],
    job: Job,
    round_index: int,
    plan: RoundPlan,
    base: RoundBase,
    reports: Mapping[str, TakenReport],
) -> Aggregate:
    """Make the log of a round: the weighted mean of the devices' local models, or what [robust] makes of them.

    Args:
        parameters: the layout.
        job: the job.
        round_index: index of the round.
        plan: what the devices did.
        base: what the round started from.
        reports: the reports that were taken, by device; at least one.

    Raises:
        ProtocolError: the scalars of a report do not fit the rule.
    """
    weights = shares(
        {device: job.counted_examples(report.examples) for device, report in reports.items()}, job.weighting
    )
    log = RoundLog(
        job=job.name,
        job_seed=job.seed,
        round=round_index,
        rule=plan.rule,
        front_size=front_size(parameters, plan.split),
        steps=job.steps,
        mean_square=base.mean_square,
        momentum=job.server_momentum,
        previous_sha256=base.previous_sha256 if job.server_momentum > 0 else None,
        base_sha256=base.sha256,
        result_sha256=base.sha256,
        devices=[
            DeviceScalars(device, weight, reports[device].scalars, plan.back_perturbations.get(device))
            for device, weight in weights.items()
        ],
        terms=None,
        base_moment_sha256=base.moment_sha256 if plan.rule.keeps_moment else msgspec.UNSET,
    )
    log = clipped_log(log, job.robust)
    rows = [unpack_scalars(device.scalars, job.steps, log.rule_of(device).scalars_per_step) for device in log.devices]
    # Only devices with the rule's P2: with another one, the groups' means have another spread.
    alike = [steps for device, steps in zip(log.devices, rows, strict=True) if log.rule_of(device) == plan.rule]
    v1, v2 = variances(plan.rule, [step for steps in alike for step in steps])
    return Aggregate(
        log=_shortest(log, job.robust),
        mean_square=robust_mean_square(rows, job.robust) if plan.rule.normalize == "rms" else None,
        figures=RoundFigures(
            plan.split,
            v1,
            v2,
            _median(r.front_s for r in reports.values()),
            _median(r.back_s for r in reports.values()),
        ),
        agreement=forward_agreement(log, parameters[-1].stop, compare_paths=(job.robust or Robust()).compare_paths),
    )


def _shortest(log: RoundLog, robust: Robust | None) -> RoundLog:
    """Return the shortest log of the round's mean, or of what [robust] makes of it."""
    if robust is None or robust.aggregate == "mean":
        return compact(log)
    return with_terms(log, robust_terms(log, robust))


def _median(values: Iterable[float | None]) -> float | None:
    """Return the median of the values that are known; None: none is."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def variances(rule: StepRule, steps: Sequence[Sequence[float]]) -> tuple[float | None, float | None]:
    """Estimate V1 and V2 from scalars.

    A scalar of the nested variant is the sum of a front term, which all P2 scalars of a front direction share, and a
    back term. Both have mean zero over directions. So the variance within these groups is V2, and the mean square of
    the groups' means is V1 + V2 / P2 (ours).

    Args:
        rule: the rule of the steps.
        steps: the scalars of each step of each device.

    Returns:
        V1 (not below 0) and V2; None where they cannot be estimated under the rule, or the front is frozen.
    """
    p2 = rule.back_perturbations
    if not rule.is_nested or p2 < FEWEST_BACK_PERTURBATIONS or not steps:
        return None, None
    groups = [step[start : start + p2] for step in steps for start in range(0, len(step), p2)]
    within = math.fsum(statistics.variance(group) for group in groups) / len(groups)
    means = math.fsum(statistics.fmean(group) ** 2 for group in groups) / len(groups)
    return max(0.0, means - within / p2), within
