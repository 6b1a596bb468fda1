"""Which dropout levels a device may be offered, and why others are not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_runtime.bundle.memory_need import level_need, levels_that_fit

if TYPE_CHECKING:
    from edge_runtime.bundle.manifest import Manifest
    from server.fleet.devices import Device
    from server.job.job import Job


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
