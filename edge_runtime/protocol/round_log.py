"""The replay log of a round: everything that turns the adapter before the round into the one after it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec
import numpy as np

from edge_runtime.errors import ProtocolError
from edge_runtime.files.versioned import VersionedFormat
from edge_runtime.protocol.step_rule import MAX_PERTURBATIONS, StepRule, rule_with
from edge_runtime.values import Sha256

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_runtime.values import FloatVector

LOG_VERSION = 2
SCALAR_BOUND = 1e6
"""Largest absolute scalar that is accepted from a device; a larger one is a fault, not a gradient."""


class DeviceScalars(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One device's part of a round.

    Attributes:
        device: its name.
        weight: its share of the update.
        scalars: float32, little-endian, step after step.
        back_perturbations: its P2, if that differs from the rule's.
    """

    device: str
    weight: Annotated[float, msgspec.Meta(ge=0, le=1)]
    scalars: bytes
    back_perturbations: Annotated[int, msgspec.Meta(ge=1, le=MAX_PERTURBATIONS)] | None = None


class PackedTerms(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A round's update where devices share directions: one coefficient per direction, whatever the cohort's size.

    Attributes:
        front: coefficients, float32, little-endian.
        back: the same for the back block.
        front_pool: index in the job's seed pool of each direction, uint32, little-endian; None without a pool: the
            directions are those of every step, in order.
        back_pool: the same for the back block.
    """

    front: bytes
    back: bytes
    front_pool: bytes | None
    back_pool: bytes | None


class RoundLog(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="round-log", tag_field="type"):
    """Everything that turns the adapter before a round into the one after it.

    Attributes:
        job: name of the job.
        job_seed: from which all seeds of the job follow.
        round: index of the round, from 0.
        rule: the step's rule.
        front_size: length of the front block at the round's split.
        steps: local steps of each device.
        mean_square: running mean square of the scalars at the start of every device's steps; None: each device starts
            it with its own first step.
        momentum: share of the last round's movement that is added to this one's; 0: none.
        previous_sha256: the adapter before ``base_sha256``, where there is momentum; None in a job's first round.
        base_sha256: the adapter before the round.
        result_sha256: the adapter after it.
        devices: in the order of their names; empty where ``terms`` holds the whole update.
        terms: the update itself, where the rule shares directions among devices or steps; else None.
        base_moment_sha256: the moment before the round, where the rule keeps one; None in a job's first round; left out
            where the rule keeps none.
        result_moment_sha256: the moment after the round; left out as above.
    """

    job: str
    job_seed: Annotated[int, msgspec.Meta(ge=0)]
    round: Annotated[int, msgspec.Meta(ge=0)]
    rule: StepRule
    front_size: Annotated[int, msgspec.Meta(ge=0)]
    steps: Annotated[int, msgspec.Meta(ge=1)]
    mean_square: Annotated[float, msgspec.Meta(ge=0)] | None
    momentum: Annotated[float, msgspec.Meta(ge=0, lt=1)]
    previous_sha256: Sha256 | None
    base_sha256: Sha256
    result_sha256: Sha256
    devices: list[DeviceScalars]
    terms: PackedTerms | None
    base_moment_sha256: Sha256 | msgspec.UnsetType | None = msgspec.UNSET
    result_moment_sha256: Sha256 | msgspec.UnsetType = msgspec.UNSET

    def rule_of(self, device: DeviceScalars) -> StepRule:
        """Return the rule of one device's steps."""
        return rule_with(self.rule, device.back_perturbations)


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
            f"a scalar is not finite or above {SCALAR_BOUND:g}",
            "lower learning_rate in the job, and run covey-edge doctor on the device",
        )
    rows: list[list[float]] = values.reshape(steps, per_step).tolist()
    return rows


class LogChain(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="log-chain", tag_field="type"):
    """The logs of consecutive rounds in one blob, for a device that missed several rounds."""

    v: int
    rounds: Annotated[list[RoundLog], msgspec.Meta(min_length=1)]


_SAME_VERSION = "install the same version of Covey on the devices and on the server"
_FORMAT = VersionedFormat(
    "a replay log", LOG_VERSION, msgspec.msgpack.decode, ProtocolError, _SAME_VERSION, _SAME_VERSION
)


def encode_chain(rounds: Sequence[RoundLog]) -> bytes:
    """Return the bytes of a chain of replay logs."""
    return msgspec.msgpack.encode(LogChain(LOG_VERSION, list(rounds)))


def decode_chain(data: bytes) -> list[RoundLog]:
    """Read a chain of replay logs.

    Raises:
        ProtocolError: the data is not a chain of logs, or of another version.
    """
    chain: LogChain = _FORMAT.read(data, LogChain)
    return chain.rounds
