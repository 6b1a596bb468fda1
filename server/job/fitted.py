"""A job fitted to its bundle: what the job leaves open is filled from the manifest, and what cannot be is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from edge_runtime.errors import ConfigError

if TYPE_CHECKING:
    from edge_runtime.bundle.manifest import Manifest
    from server.job.job import Job


def fit_to_bundle(job: Job, manifest: Manifest) -> Job:
    """Return the job with its split filled in.

    Raises:
        ConfigError: the bundle has no such split, or trains something else.
    """
    split = manifest.splits[-1] if job.split is None else job.split
    if split not in manifest.splits:
        raise ConfigError(
            f"split = {split} is not in the bundle; it has {', '.join(map(str, manifest.splits))}",
            "change the job's split, or export with --split",
        )
    if job.train not in (None, manifest.train):
        raise ConfigError(
            f'train = "{job.train}" does not fit the bundle, which trains "{manifest.train}"',
            f"export it with --train {job.train}, or change the job",
        )
    _check_levels(job, manifest)
    return msgspec.structs.replace(job, split=split)


def _check_levels(job: Job, manifest: Manifest) -> None:
    if job.stld is None:
        return
    if manifest.train != "lora":
        raise ConfigError("[stld] trains LoRA bundles only, this one trains every weight", "leave [stld] out")
    if not manifest.levels:
        raise ConfigError("the bundle has no training graphs for [stld]", "export it with --levels")
    if job.stld.rescale and not all(graph.rescales for graph in manifest.graphs if graph.kind == "train"):
        raise ConfigError(
            "rescale = true: the bundle's training graphs do not rescale residuals",
            "leave it out, or export with --levels and --rescale",
        )
    for level in [*(job.stld.levels or []), *(level for level in job.stld.device_levels.values() if level)]:
        if level not in manifest.levels:
            raise ConfigError(
                f"level {level} of [stld] is not in the bundle; it has {', '.join(map(str, manifest.levels))}",
                "change the job's levels, or export with --levels",
            )
    for name, level in job.stld.device_levels.items():
        if level and level not in job.levels(manifest):
            raise ConfigError(
                f"[stld] gives {name} level {level}, but its levels are {', '.join(map(str, job.levels(manifest)))}",
                "add the level to levels, or give the device one of them",
            )
