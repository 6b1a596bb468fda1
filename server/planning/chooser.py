"""Who gets which work: forward passes only, or backpropagation at a level."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

from edge_runtime.device.memory import level_need, levels_that_fit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edge_runtime.bundle.manifest import Manifest
    from edge_runtime.protocol.messages import Report
    from server.fleet.devices import Device
    from server.job.job import Job


class Assignment(msgspec.Struct, frozen=True):
    """What was decided for a round; see planning.RoundPlan. ``split`` and ``length_s`` are None where nothing was."""

    devices: list[str]
    levels: dict[str, int]
    back_perturbations: dict[str, int] = {}
    split: int | None = None
    length_s: float | None = None


class Chooser(Protocol):
    """Decides who gets which work, and is told what came of it."""

    def can_work(self, device: Device) -> bool:
        """Whether there is any work for a device."""

    def assign(self, devices: Sequence[Device], index: int, attempt: int, enough: int, now: float) -> Assignment:
        """Decide the work of a round's devices; ``enough`` reports end it, ``now`` is the server's clock."""

    def resume(self, index: int, attempt: int) -> None:
        """Take up a round that was open when the server stopped."""

    def sent(self, device: str, now: float) -> None:
        """A device's plan was sent."""

    def reported(self, device: str, report: Report, now: float) -> None:
        """A report was taken."""

    def closed(self, index: int, examples: Mapping[str, int], now: float) -> None:
        """A round is aggregated; ``examples`` are the rows of each device whose report counts."""

    def evaluated(self, index: int | None, loss: float) -> None:
        """A round's adapter, or (None) the first one, has this held-out loss."""


class LargestThatFits:
    """Gives each device the largest level that its memory can hold, and learns nothing: a job without [bandit].

    Args:
        job: the job, fitted to its bundle.
        manifest: the bundle's manifest.
        bundle_sha256: the bundle's name.
    """

    def __init__(self, job: Job, manifest: Manifest, bundle_sha256: str) -> None:
        self._job, self._manifest, self._bundle_sha256 = job, manifest, bundle_sha256

    def _level(self, device: Device) -> int | None:
        return choose_work(self._job, self._manifest, self._bundle_sha256, device)

    def can_work(self, device: Device) -> bool:
        """See Chooser."""
        return takes_part(self._job, self._level(device))

    def assign(self, devices: Sequence[Device], index: int, attempt: int, enough: int, now: float) -> Assignment:  # noqa: ARG002
        """See Chooser."""
        chosen = {device.name: self._level(device) for device in devices}
        return Assignment(list(chosen), {name: level for name, level in chosen.items() if level is not None})

    def resume(self, index: int, attempt: int) -> None:
        """See Chooser."""

    def sent(self, device: str, now: float) -> None:
        """See Chooser."""

    def reported(self, device: str, report: Report, now: float) -> None:
        """See Chooser."""

    def closed(self, index: int, examples: Mapping[str, int], now: float) -> None:
        """See Chooser."""

    def evaluated(self, index: int | None, loss: float) -> None:
        """See Chooser."""


def choose_work(job: Job, manifest: Manifest, bundle_sha256: str, device: Device) -> int | None:
    """Return the largest level at which a device can train in the next round; None: with forward passes only.

    Args:
        job: the job, fitted to its bundle.
        manifest: the bundle's manifest.
        bundle_sha256: the bundle's name.
        device: what is known of the device.
    """
    reasons = level_reasons(job, manifest, bundle_sha256, device)
    return max((level for level, reason in (reasons or {}).items() if reason is None), default=None)


def level_reasons(job: Job, manifest: Manifest, bundle_sha256: str, device: Device) -> dict[int, str | None] | None:
    """Return why a device cannot train at each of the job's levels; None for a level: it can. None: forward-only.

    A device to which the job gives a level by name has that one alone. The others can have those that fit into the free
    memory that they announced, and are below any that they refused.

    Args:
        job: the job, fitted to its bundle.
        manifest: the bundle's manifest.
        bundle_sha256: the bundle's name.
        device: what is known of the device.
    """
    if job.stld is None or device.birth is None:
        return None
    levels = job.levels(manifest)
    named = job.stld.device_levels.get(device.name)
    if named is not None:
        return {level: None if level == named else f"the job says level {named}" for level in levels} if named else None
    can = device.birth.capability
    if can.kind == "forward-only":
        return None
    if can.levels is not None and device.birth.bundle_sha256 == bundle_sha256:
        needs = can.levels
    else:
        needs = [level_need(manifest, level) for level in manifest.levels]
    fit = levels_that_fit(needs, can.bytes_free, job.stld.fewest_rows)
    reasons: dict[int, str | None] = {}
    for level in levels:
        if level not in fit:
            reasons[level] = f"does not fit into the {can.bytes_free} bytes that are free"
        elif device.refused_level is not None and level >= device.refused_level:
            reasons[level] = f"the device refused level {device.refused_level}"
        else:
            reasons[level] = None
    return reasons


def takes_part(job: Job, level: int | None) -> bool:
    """Whether a device with this work is asked at all."""
    return level is not None or job.stld is None or job.stld.forward_only
