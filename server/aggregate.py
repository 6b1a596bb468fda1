"""From the cohort's reports to the next adapter: shares, the replay log, the replay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from edge_runtime.layout import adapter_sha256, front_size
from edge_runtime.replay import DeviceScalars, RoundLog, mean_square_of, replay, unpack_scalars
from edge_runtime.workshop import ROUND_LOG_VERSION
from server.errors import JobError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edge_runtime.layout import Parameter
    from edge_runtime.perturbation import FloatVector
    from server.job import Job


@dataclass(frozen=True)
class TakenReport:
    """What the server keeps of a report: packed scalars and the device's number of rows."""

    scalars: bytes
    examples: int


@dataclass(frozen=True)
class Aggregate:
    """A round's result.

    Attributes:
        theta: the new adapter, float32, (parameters,).
        log: what turns the old adapter into it.
        mean_square: mean square of the cohort's scalars, for the next round's normalisation.
    """

    theta: FloatVector
    log: RoundLog
    mean_square: float | None


def shares(examples: Mapping[str, int], weighting: str) -> dict[str, float]:
    """Return each device's share, in the order of the names; they add up to 1."""
    counts = {device: examples[device] if weighting == "examples" else 1 for device in sorted(examples)}
    total = sum(counts.values())
    return {device: count / total for device, count in counts.items()}


def aggregate(
    theta: FloatVector,
    parameters: Sequence[Parameter],
    job: Job,
    round_index: int,
    mean_square: float | None,
    reports: Mapping[str, TakenReport],
) -> Aggregate:
    """Rebuild the weighted mean of the devices' local models from their scalars.

    Args:
        theta: the adapter that the round started from.
        parameters: the layout.
        job: the job, its split filled in.
        round_index: index of the round.
        mean_square: what the plans of the round carried.
        reports: the reports that count, by device; at least one.

    Raises:
        ProtocolError: scalars that do not fit the rule.
        JobError: the new adapter is not finite.
    """
    assert job.split is not None  # noqa: S101 fit_to_bundle has run
    weights = shares({device: report.examples for device, report in reports.items()}, job.weighting)
    base = adapter_sha256(theta)
    log = RoundLog(
        v=ROUND_LOG_VERSION,
        job=job.name,
        job_seed=job.seed,
        round=round_index,
        rule=job.rule_of(round_index),
        front_size=front_size(parameters, job.split),
        steps=job.steps,
        mean_square=mean_square,
        base_sha256=base,
        result_sha256=base,
        devices=[DeviceScalars(device, weight, reports[device].scalars) for device, weight in weights.items()],
    )
    result = replay(theta, log)
    if not np.isfinite(result).all():
        raise JobError(
            f"round {round_index} gives an adapter that is not finite", "lower learning_rate in the job's [step]"
        )
    rows = [unpack_scalars(device.scalars, job.steps, job.step.scalars_per_step) for device in log.devices]
    return Aggregate(
        theta=result,
        log=msgspec.structs.replace(log, result_sha256=adapter_sha256(result)),
        mean_square=mean_square_of(rows) if job.step.normalize == "rms" else None,
    )
