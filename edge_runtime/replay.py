"""From seeds and scalars to a new adapter: the same code, in the same order, on the server and on every device.

A coefficient is computed in float64 with plain additions in a fixed order, then rounded to float32; an update is one
float32 multiply and one add a parameter (perturbation.py). So a replay is bit-exact, and the adapter's hash proves it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import msgspec
import numpy as np

from edge_runtime.errors import ProtocolError, TrainingError
from edge_runtime.layout import adapter_sha256
from edge_runtime.manifest import Sha256
from edge_runtime.perturbation import BACK, FRONT, perturb_into
from edge_runtime.spzo import StepRule, StepSeeds, step_seeds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_runtime.perturbation import FloatVector

_MEAN_SQUARE_DECAY = 0.9
SCALAR_BOUND = 1e6
"""Largest absolute scalar that is taken from a device; more is a fault, not a gradient."""


@dataclass(frozen=True)
class Coefficients:
    """What one step adds: ``front[i] · z_i`` and ``back[k] · z_k``, in the order of StepSeeds."""

    front: tuple[float, ...]
    back: tuple[float, ...]


def step_coefficients(
    scalars: Sequence[float], rule: StepRule, mean_square: float | None
) -> tuple[Coefficients, float | None]:
    """Turn a step's scalars into the coefficients of its update.

    Args:
        scalars: the step's projected gradients, as they were rounded to float32.
        rule: the step's rule.
        mean_square: running mean square of the scalars so far; None before the first step.

    Returns:
        The coefficients (the learning rate, the sign of descent and the normalisation are in them), and the new
        running mean square (None when the rule does not normalise).
    """
    estimate = _nested_estimate(scalars, rule) if rule.variant == "nested" else _clean_estimate(scalars, rule)
    if rule.normalize == "none":
        factor, mean_square = -rule.learning_rate, None
    else:
        now = sum(g * g for g in scalars) / len(scalars)
        previous = now if mean_square is None else mean_square
        mean_square = _MEAN_SQUARE_DECAY * previous + (1 - _MEAN_SQUARE_DECAY) * now
        factor = -rule.learning_rate / math.sqrt(mean_square) if mean_square > 0 else 0.0
    front, back = estimate
    return Coefficients(tuple(factor * c for c in front), tuple(factor * c for c in back)), mean_square


def _without_the_others(group: Sequence[float], *, leave_one_out: bool) -> list[float]:
    if not leave_one_out or len(group) < 2:
        return list(group)
    total = sum(group)
    return [g - (total - g) / (len(group) - 1) for g in group]


def _nested_estimate(scalars: Sequence[float], rule: StepRule) -> tuple[list[float], list[float]]:
    p1, p2 = rule.front_perturbations, rule.back_perturbations
    groups = [scalars[i * p2 : (i + 1) * p2] for i in range(p1)]
    front = [sum(group) / (p1 * p2) for group in groups]
    back = [g / (p1 * p2) for group in groups for g in _without_the_others(group, leave_one_out=rule.leave_one_out)]
    return front, back


def _clean_estimate(scalars: Sequence[float], rule: StepRule) -> tuple[list[float], list[float]]:
    p1, p2 = rule.front_perturbations, rule.back_perturbations
    # Nothing is shared here: leave-one-out would only add noise, and rule checks refuse it.
    return [g / p1 for g in scalars[:p1]], [g / p2 for g in scalars[p1:]]


def apply_step(
    theta: FloatVector, front_size: int, seeds: StepSeeds, coefficients: Coefficients, weight: float = 1.0
) -> None:
    """Add one step's update to ``theta``, in place: first the front's directions, then the back's.

    Args:
        theta: float32, (parameters,), changed.
        front_size: length of the front block, the first elements of theta.
        seeds: the step's directions.
        coefficients: what step_coefficients gave for its scalars.
        weight: the device's share in the cohort; 1 for the device's own model.
    """
    front, back = theta[:front_size], theta[front_size:]
    if front_size:
        for seed, coefficient in zip(seeds.front, coefficients.front, strict=True):
            perturb_into(front, front, seed, FRONT, weight * coefficient)
    for seed, coefficient in zip(seeds.back, coefficients.back, strict=True):
        perturb_into(back, back, seed, BACK, weight * coefficient)


class DeviceScalars(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One device's part of a round: its share, and its scalars (float32, little-endian, step after step)."""

    device: str
    weight: Annotated[float, msgspec.Meta(ge=0, le=1)]
    scalars: bytes


class RoundLog(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="round-log", tag_field="type"):
    """All that is needed to turn a round's first adapter into its last.

    Attributes:
        v: version of this format.
        job: name of the job.
        job_seed: from which all seeds of the job follow.
        round: index of the round, from 0.
        rule: the step's rule.
        front_size: length of the front block at the round's split.
        steps: local steps of each device.
        mean_square: running mean square of the scalars with which every device began; None: from its own first step.
        base_sha256: the adapter before the round.
        result_sha256: the adapter after it.
        devices: in the order of their names.
    """

    v: int
    job: str
    job_seed: Annotated[int, msgspec.Meta(ge=0)]
    round: Annotated[int, msgspec.Meta(ge=0)]
    rule: StepRule
    front_size: Annotated[int, msgspec.Meta(ge=0)]
    steps: Annotated[int, msgspec.Meta(ge=1)]
    mean_square: float | None
    base_sha256: Sha256
    result_sha256: Sha256
    devices: list[DeviceScalars]


def pack_scalars(scalars: FloatVector) -> bytes:
    """Return scalars as float32, little-endian: 4 bytes each."""
    return scalars.astype("<f4", copy=False).tobytes()


def unpack_scalars(data: bytes, steps: int, per_step: int) -> list[list[float]]:
    """Read packed scalars.

    Returns:
        ``steps`` lists of ``per_step`` numbers.

    Raises:
        ProtocolError: the length does not fit, or a scalar is not finite or out of bounds.
    """
    if len(data) != 4 * steps * per_step:
        raise ProtocolError(
            f"{len(data)} bytes of scalars where {steps} steps of {per_step} need {4 * steps * per_step}",
            "run the same version of Covey on the device and on the server",
        )
    values = np.frombuffer(data, dtype="<f4").astype(np.float64)
    if not np.isfinite(values).all() or np.abs(values).max(initial=0.0) > SCALAR_BOUND:
        raise ProtocolError(
            f"a scalar is not finite or above {SCALAR_BOUND:g}", "lower learning_rate in the job; look at the device"
        )
    rows: list[list[float]] = values.reshape(steps, per_step).tolist()
    return rows


def replay(theta: FloatVector, log: RoundLog) -> FloatVector:
    """Return the adapter after the round, as a new vector; the log's ``result_sha256`` is not looked at.

    The result is the weighted mean of the devices' local models: theta plus, in the order device → step → index,
    weight × coefficient × z.

    Raises:
        ProtocolError: scalars that do not fit the rule.
    """
    result = theta.copy()
    for device in log.devices:
        mean_square = log.mean_square
        rows = unpack_scalars(device.scalars, log.steps, log.rule.scalars_per_step)
        for step, scalars in enumerate(rows):
            coefficients, mean_square = step_coefficients(scalars, log.rule, mean_square)
            directions = step_seeds(log.rule, log.job_seed, log.round, device.device, step)
            apply_step(result, log.front_size, directions, coefficients, device.weight)
    return result


def replay_checked(theta: FloatVector, log: RoundLog) -> FloatVector:
    """Replay a log on the adapter that it names, and check that it ends where it says.

    Raises:
        TrainingError: theta is not the log's base, or the result has another hash.
    """
    if (have := adapter_sha256(theta)) != log.base_sha256:
        raise TrainingError(
            f"the replay log starts from adapter {log.base_sha256[:12]}, this machine has {have[:12]}",
            "fetch the adapter itself",
        )
    result = replay(theta, log)
    if (have := adapter_sha256(result)) != log.result_sha256:
        raise TrainingError(
            f"the replay ended on adapter {have[:12]}, the server's is {log.result_sha256[:12]}",
            "fetch the adapter itself, and report both machines' versions: the bits should be equal",
        )
    return result


def mean_square_of(all_scalars: Sequence[Sequence[Sequence[float]]]) -> float | None:
    """Return the mean square over devices, steps and indexes; None when there are no scalars."""
    squares = [g * g for rows in all_scalars for row in rows for g in row]
    return math.fsum(squares) / len(squares) if squares else None
