"""What a session says of itself, and of training that took no time."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edge_runtime import __version__
from edge_runtime.protocol.presence import Birth, Capability
from edge_runtime.protocol.reports import RoundReport
from edge_runtime.protocol.round_log import pack_scalars

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edge_runtime.protocol.plans import TrainPlan
    from edge_runtime.values import FloatVector

_ROWS = 32
_SCALE = 0.1


@dataclass(frozen=True)
class Trains:
    """What a session says that it trains; see presence.Birth for the fields.

    Attributes:
        runtimes: versions of the libraries that training uses; empty: nothing is trained.
    """

    methods: Sequence[str]
    rows: int
    runtimes: Mapping[str, str]
    bundle_sha256: str | None


INSTANT = Trains(("spzo",), _ROWS, {}, None)
"""A session that trains in no time."""


def birth(
    name: str,
    epoch: str,
    *,
    boot_id: str = "1",
    connection: int = 1,
    tags: Sequence[str] = (),
    trains: Trains = INSTANT,
    adapter_sha256: str | None = None,
) -> Birth:
    """Return the announcement of a device that trains with forward passes alone; see presence.Birth."""
    return Birth(
        device=name,
        boot_id=boot_id,
        connection=connection,
        epoch=epoch,
        covey_version=__version__,
        python_version=platform.python_version(),
        machine="covey swarm",
        runtimes=dict(trains.runtimes),
        methods=list(trains.methods),
        rows=trains.rows,
        bundle_sha256=trains.bundle_sha256,
        adapter_sha256=adapter_sha256,
        capability=Capability(kind="forward-only", levels=[], bytes_free=None),
        tags=list(tags),
    )


def drawn_scalars(name: str, plan: TrainPlan) -> FloatVector:
    """Return the scalars that a session sends for a plan, (steps × scalars per step,); the same for the same round."""
    rng = np.random.Generator(np.random.PCG64([plan.round, *name.encode()]))
    return rng.normal(scale=_SCALE, size=plan.steps * plan.rule.scalars_per_step).astype(np.float32)


def instant_report(name: str, plan: TrainPlan, scalars: FloatVector) -> RoundReport:
    """Return the report of a device that has trained in no time."""
    return RoundReport(
        job=plan.job,
        round=plan.round,
        attempt=plan.attempt,
        device=name,
        adapter_sha256=plan.adapter.file.sha256,
        scalars=pack_scalars(scalars),
        examples=_ROWS,
        loss=0.5,
        seconds=1.0,
        front_passes=2,
        back_passes=4,
        front_seconds=0.5,
        back_seconds=0.5,
        link_bytes_per_s=None,
        replay_parameters_per_s=None,
        blob_bytes=0,
    )
