"""Who gets which work: forward passes only, or backpropagation at a level."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_runtime.memory import level_need, levels_that_fit

if TYPE_CHECKING:
    from edge_runtime.manifest import Manifest
    from server.fleet import Device
    from server.job import Job


def choose_work(job: Job, manifest: Manifest, bundle_sha256: str, device: Device) -> int | None:
    """Return the level at which a device trains in the next round; None: with forward passes only.

    A level that the job gives the device by name; else the largest one of the job that fits into the free memory that
    the device announced, and below any that it refused.

    Args:
        job: the job, fitted to its bundle.
        manifest: the bundle's manifest.
        bundle_sha256: the bundle's name.
        device: what is known of the device.
    """
    if job.stld is None or device.birth is None:
        return None
    named = job.stld.device_levels.get(device.name)
    if named is not None:
        return named or None
    can = device.birth.capability
    if can.kind == "forward-only":
        return None
    if can.levels is not None and device.birth.bundle_sha256 == bundle_sha256:
        needs = can.levels
    else:
        needs = [level_need(manifest, level) for level in manifest.levels]
    fit = levels_that_fit(needs, can.bytes_free, job.stld.rows_at_once)
    allowed = [
        level
        for level in fit
        if level in job.levels(manifest) and (device.refused_level is None or level < device.refused_level)
    ]
    return max(allowed, default=None)


def takes_part(job: Job, level: int | None) -> bool:
    """Whether a device with this work is asked at all."""
    return level is not None or job.stld is None or job.stld.forward_only
