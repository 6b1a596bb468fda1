"""Computes a new adapter from seeds and scalars: the same code, in the same order, on the server and on every device.

A replay is bit-exact (coefficients.py says why), and the adapter's hash proves it. It works on parts of any size, so
that a model's weights can be rebuilt from one mapped file into another (replay_file.py).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from edge_runtime import seeds
from edge_runtime.errors import ProtocolError, TrainingError
from edge_runtime.forward_only.coefficients import Terms, add_terms, step_coefficients
from edge_runtime.forward_only.directions import ALL_DEVICES, step_seeds
from edge_runtime.forward_only.moment import move_part
from edge_runtime.perturbation.perturb import BACK, FRONT
from edge_runtime.protocol.round_log import PackedTerms, RoundLog, unpack_scalars

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from edge_runtime.forward_only.directions import StepSeeds
    from edge_runtime.values import FloatVector


def round_terms(log: RoundLog) -> Terms:
    """Return a round's update: each direction once, in the order device → step → index of its first use.

    A direction's coefficient is the sum, in that order and in float64, of weight × coefficient over all its uses,
    rounded to float32 when it is added.

    Raises:
        ProtocolError: scalars or terms do not fit the rule.
    """
    if log.terms is not None:
        return _unpack_terms(log, log.terms)
    front: dict[int, float] = {}
    back: dict[int, float] = {}
    shared: dict[tuple[int, int], StepSeeds] = {}
    for device in log.devices:
        mean_square, rule = log.mean_square, log.rule_of(device)
        rows = unpack_scalars(device.scalars, log.steps, rule.scalars_per_step)
        for step, scalars in enumerate(rows):
            coefficients, mean_square = step_coefficients(scalars, rule, mean_square)
            key = (rule.back_perturbations, step)
            directions = shared.get(key) or step_seeds(rule, log.job_seed, log.round, device.device, step)
            if rule.shared_directions:
                shared[key] = directions  # deriving them again for each device takes most of the time
            for total, used, values in (
                (front, directions.front, coefficients.front),
                (back, directions.back, coefficients.back),
            ):
                for seed, value in zip(used, values, strict=True):
                    total[seed] = total.get(seed, 0.0) + device.weight * value
    return Terms(list(front.items()) if log.front_size else [], list(back.items()))


def compact(log: RoundLog) -> RoundLog:
    """Return the shortest log with the same result: with merged terms if directions recur, else the same log."""
    if log.terms is not None or not log.rule.merges_devices:
        return log
    return with_terms(log, round_terms(log))


def with_terms(log: RoundLog, terms: Terms) -> RoundLog:
    """Return a log that holds a round's update as merged terms, in place of the devices' scalars.

    Args:
        log: the log of a rule that merges devices.
        terms: each direction once, in the order of round_terms.
    """
    pool = None if log.rule.seed_pool is None else _pool_indices(log.job_seed, log.rule.seed_pool)
    packed = PackedTerms(
        front=_pack([c for _, c in terms.front], "<f4"),
        back=_pack([c for _, c in terms.back], "<f4"),
        front_pool=None if pool is None else _pack([pool[seed] for seed, _ in terms.front], "<u4"),
        back_pool=None if pool is None else _pack([pool[seed] for seed, _ in terms.back], "<u4"),
    )
    return msgspec.structs.replace(log, devices=[], terms=packed)


@functools.lru_cache(maxsize=1)  # a job's pool is the same in every round
def _pool_indices(job_seed: int, pool: int) -> dict[int, int]:
    return {seeds.pool_seed(job_seed, index): index for index in range(pool)}


def _pack(values: Sequence[float], dtype: str) -> bytes:
    return np.array(values, dtype=dtype).tobytes()


def _unpack(data: bytes, dtype: str) -> NDArray[Any]:
    if len(data) % 4:
        raise ProtocolError("a replay log has a broken list of terms", "fetch the adapter itself")
    return np.frombuffer(data, dtype=dtype)


def _unpack_terms(log: RoundLog, packed: PackedTerms) -> Terms:
    if not log.rule.merges_devices:
        raise ProtocolError("a replay log merges directions that its rule does not share", "fetch the adapter itself")
    steps = range(log.steps) if log.rule.seed_pool is None else ()
    directions = [step_seeds(log.rule, log.job_seed, log.round, ALL_DEVICES, step) for step in steps]
    parts = []
    for data, pool, in_order in (
        (packed.front, packed.front_pool, [seed for step in directions for seed in step.front]),
        (packed.back, packed.back_pool, [seed for step in directions for seed in step.back]),
    ):
        coefficients = _unpack(data, "<f4")
        if not np.isfinite(coefficients).all():
            raise ProtocolError("a replay log has a coefficient that is not finite", "fetch the adapter itself")
        if log.rule.seed_pool is None:
            used = in_order[: len(coefficients)]
        else:
            indices = _unpack(pool or b"", "<u4")
            if indices.size and int(indices.max()) >= log.rule.seed_pool:
                raise ProtocolError("a replay log names a seed outside its pool", "fetch the adapter itself")
            used = [seeds.pool_seed(log.job_seed, index) for index in indices.tolist()]
        if len(used) != len(coefficients):
            raise ProtocolError("a replay log has more coefficients than directions", "fetch the adapter itself")
        parts.append(list(zip(used, coefficients.tolist(), strict=True)))
    return Terms(*parts)


def replay(
    theta: FloatVector, log: RoundLog, previous: FloatVector | None = None, moment: FloatVector | None = None
) -> FloatVector:
    """Return the adapter after the round, as a new vector; the log's hashes are not checked.

    The result is the weighted mean of the devices' local models: theta, plus momentum × (theta − previous), plus the
    round's terms, in this order.

    Args:
        theta: float32, (parameters,), the adapter before the round.
        log: the round.
        previous: the adapter before ``theta``; needed if the log has momentum and is not a job's first.
        moment: the moment before the round, float32, (parameters,), zeros in a job's first round; needed if the rule
            keeps one, and then that of after the round is written to it.

    Raises:
        ProtocolError: scalars do not fit the rule.
        TrainingError: ``previous`` or ``moment`` is needed and missing.
    """
    result: FloatVector = np.empty_like(theta)
    replay_part(Part(result, theta, previous, moment, 0, theta.size), log, round_terms(log))
    return result


@dataclass(frozen=True)
class Part:
    """A part of the parameters that is replayed; parts give the same bits as the whole.

    Attributes:
        out: float32, (n,), written.
        theta: float32, (n,): parameters ``start`` … ``start + n − 1`` of the adapter before the round.
        previous: the same part of the adapter before ``theta``; see replay.
        moment: the same part of the moment, written; see replay.
        start: index of the part's first parameter.
        size: number of parameters of the whole adapter.
    """

    out: FloatVector
    theta: FloatVector
    previous: FloatVector | None
    moment: FloatVector | None
    start: int
    size: int


def replay_part(where: Part, log: RoundLog, terms: Terms) -> None:
    """Replay a part of the parameters.

    Args:
        where: the part.
        log: the round.
        terms: its terms.

    Raises:
        TrainingError: the previous adapter or the moment is needed and missing.
    """
    out, moment = where.out, where.moment
    if log.previous_sha256 is None:
        np.copyto(out, where.theta)
    elif where.previous is None:
        raise TrainingError(
            "the replay log has momentum, and the previous adapter is missing", "fetch the adapter itself"
        )
    else:
        np.subtract(where.theta, where.previous, out=out)
        np.multiply(out, np.float32(log.momentum), out=out)
        np.add(where.theta, out, out=out)
    if log.rule.keeps_moment and moment is None:
        raise TrainingError("the replay log needs a moment, and it is missing", "fetch the adapter itself")
    for block, first, last, block_terms in (
        (FRONT, 0, log.front_size, terms.front),
        (BACK, log.front_size, where.size, terms.back),
    ):
        low, high = max(where.start, first), min(where.start + out.size, last)
        if low < high and block_terms:
            inside = slice(low - where.start, high - where.start)
            if moment is not None and log.rule.keeps_moment:
                move_part(out[inside], moment[inside], log.rule, log.round, block_terms, block, low - first)
            else:
                add_terms(out[inside], out[inside], block_terms, block, offset=low - first)


def mean_square_of(all_scalars: Sequence[Sequence[Sequence[float]]]) -> float | None:
    """Return the mean square over devices, steps and indexes; None when there are no scalars."""
    squares = [g * g for rows in all_scalars for row in rows for g in row]
    return math.fsum(squares) / len(squares) if squares else None
