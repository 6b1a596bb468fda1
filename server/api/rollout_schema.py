"""What travels over the operator's API about rollouts; see schema.py."""

from __future__ import annotations

from typing import Literal

import msgspec


class RolloutOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A rollout to begin.

    Attributes:
        kind: what is rolled out.
        source: its absolute path on the server's machine; of an adapter, also the name of a job.
        groups: the size of the groups up to and with each one, as ``"1"`` or ``"25%"``.
        bundle: absolute path of the bundle of an adapter that is given by its path.
        error_threshold: share of a group's devices, 0 to 1, above which failures end the rollout.
        soak_s: seconds between the success of a group and the next.
        approve: whether each group waits for a resume.
    """

    kind: Literal["bundle", "adapter", "wheel"]
    source: str
    groups: list[str]
    bundle: str | None = None
    error_threshold: float = 0.05
    soak_s: float = 0.0
    approve: bool = False


class RolloutDevice(msgspec.Struct, frozen=True):
    """A device in a rollout, and what became of it."""

    device: str
    state: str
    reason: str


class RolloutGroup(msgspec.Struct, frozen=True):
    """One group of a rollout; the first has number 1."""

    group: int
    devices: list[RolloutDevice]


class RolloutStatus(msgspec.Struct, frozen=True):
    """One rollout.

    Attributes:
        group: the group at work, or that begins next; the first is 1.
        soaks_until_s: end of the soak, in seconds since 1970.
    """

    rollout: int
    kind: str
    sha256: str
    bundle_sha256: str | None
    source: str
    state: str
    reason: str
    group: int
    groups: int
    error_threshold: float
    soak_s: float
    soaks_until_s: float | None
    approve: bool
    devices: int
    switched: int
    failed: int
    created_at: str
    ended_at: str | None
    group_list: list[RolloutGroup]


class RolloutList(msgspec.Struct, frozen=True):
    """All rollouts, the oldest first."""

    rollouts: list[RolloutStatus]


class RolloutChange(msgspec.Struct, frozen=True):
    """A rollout and the state that it has now."""

    rollout: int
    state: str
