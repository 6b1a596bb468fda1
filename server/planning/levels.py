"""Decides which levels a device can train at, with a reason for each that it cannot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_runtime.bundle.levels import rank
from edge_runtime.bundle.memory_need import level_need, levels_that_fit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_runtime.bundle.levels import Level
    from edge_runtime.bundle.memory_need import LevelNeed
    from edge_runtime.protocol.presence import Birth
    from server.fleet.devices import Device
    from server.job.fitted import FittedJob
    from server.job.job import Job


def largest_level(fitted: FittedJob, device: Device) -> Level | None:
    """Return the largest level at which a device can train in the next round; None: it trains forward-only."""
    reasons = level_reasons(fitted, device)
    return max((level for level, reason in (reasons or {}).items() if reason is None), key=rank, default=None)


def level_reasons(fitted: FittedJob, device: Device) -> dict[Level, str | None] | None:
    """Return, for each of the job's levels, why a device cannot train at it.

    A device whose level the job's ``device_levels`` names can train at that level alone. Another device can train at
    the levels that fit into the free memory that it announced and are below the smallest level that it refused (see
    levels.rank). Behind a frozen front, what fits is the graph that begins there, where the bundle has one.

    Returns:
        A reason per level, None for a level that the device can train at; None instead of all of them: the device
        trains forward-only.
    """
    stld = fitted.job.stld
    if stld is None or device.birth is None:
        return None
    named = stld.device_levels.get(device.name)
    if named is not None:
        reason = f"the job says level {named}"
        return {level: None if level == named else reason for level in fitted.levels} if named else None
    can = device.birth.capability
    if can.kind == "forward-only":
        return None
    fit = levels_that_fit(_needs(fitted, device.birth), can.bytes_free, stld.fewest_rows)
    reasons: dict[Level, str | None] = {}
    for level in fitted.levels:
        if level not in fit:
            reasons[level] = f"does not fit into the {can.bytes_free} bytes that are free"
        elif device.refused_level is not None and rank(level) >= rank(device.refused_level):
            reasons[level] = f"the device refused level {device.refused_level}"
        else:
            reasons[level] = None
    return reasons


def _needs(fitted: FittedJob, birth: Birth) -> Sequence[LevelNeed]:
    """Return what a device needs at the levels that it may have; one that it left out of its birth does not fit."""
    can = birth.capability
    if can.levels is not None and birth.bundle_sha256 == fitted.bundle_sha256:
        needs = {need.level: need for need in can.levels}
    else:
        needs = {level: level_need(fitted.manifest, level) for level in fitted.manifest.levels}
    if "executorch" not in birth.runtimes:  # it has no graphs that begin behind a split
        needs |= fitted.behind
    return list(needs.values())


def takes_part(job: Job, level: Level | None) -> bool:
    """Whether the job wants a device that would train at this level; None: forward-only."""
    return level is not None or job.stld is None or job.stld.forward_only
