"""What travels over the operator's API about boards; see schema.py."""

from __future__ import annotations

from typing import Any

import msgspec

from edge_runtime.bundle.levels import Level
from edge_runtime.protocol.profile import Profile


class WorkDone(msgspec.Struct, frozen=True):
    """What a device has done in one job.

    Attributes:
        job: name of the job.
        level: the level; null: forward passes alone.
        rounds: reports that were taken.
        mean_seconds: of a round's local steps; null: not known.
    """

    job: str
    level: Level | None
    rounds: int
    mean_seconds: float | None


class BoardKnown(msgspec.Struct, frozen=True):
    """A device.

    Attributes:
        device: its name.
        capability: how it can train, as it announced; null: it has not.
        profile: its newest profile of the bundle, else of any; null: it has published none.
        done: what it has done with the bundle.
    """

    device: str
    capability: dict[str, Any] | None
    profile: Profile | None
    done: list[WorkDone]


class BoardPage(msgspec.Struct, frozen=True):
    """Some of a fleet's devices, by name.

    Attributes:
        fleet: name of the fleet.
        boards: the devices.
        next_after: asks for the following ones; null: there are none.
    """

    fleet: str
    boards: list[BoardKnown]
    next_after: str | None
