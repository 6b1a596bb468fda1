"""Fits a job to its bundle: fills what the job leaves open, and rejects what the bundle does not have."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from edge_runtime.bundle.layout import front_size, total_size
from edge_runtime.bundle.levels import kind_of, listed, top_level, trained_layers
from edge_runtime.bundle.memory_need import level_need
from edge_runtime.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from edge_runtime.bundle.levels import Level, LevelKind
    from edge_runtime.bundle.manifest import Manifest
    from edge_runtime.bundle.memory_need import LevelNeed
    from server.job.job import Job


@dataclass(frozen=True)
class FittedJob:
    """A job together with the bundle that it trains. ``fit_to_bundle`` makes it.

    Attributes:
        job: the job, with its split filled in.
        split: index of the back block's first layer.
        levels: levels that backprop devices may get, ascending or as the job lists them; empty without [stld].
        bundle_sha256: the bundle's name.
        manifest: the bundle's manifest.
        behind: what levels need with training graphs that begin behind the split (see behind_needs.fit_opened); empty:
            the job trains the front, or the bundle has no such graphs.
    """

    job: Job
    split: int
    levels: list[Level]
    bundle_sha256: str
    manifest: Manifest
    behind: Mapping[Level, LevelNeed] = field(default_factory=dict)

    def need(self, level: Level) -> LevelNeed:
        """Return the memory that a device needs to train at a level on ONNX Runtime."""
        return self.behind.get(level) or level_need(self.manifest, level)

    @classmethod
    def unchecked(cls, job: Job, manifest: Manifest, bundle_sha256: str) -> FittedJob:
        """Fill in the split and the levels without a check: a simulated task's manifest lists no graphs."""
        split = manifest.splits[-1] if job.split is None else job.split
        levels = [] if job.stld is None else job.stld.levels or _of_kinds(manifest.levels, job.stld.kinds)
        if job.frozen_rounds and job.stld is not None and job.stld.levels is None:
            behind = [level for level in levels if _is_behind(level, split, manifest.model.layers)]
            levels = behind or levels
        return cls(msgspec.structs.replace(job, split=split), split, levels, bundle_sha256, manifest)


def fit_to_bundle(job: Job, manifest: Manifest, bundle_sha256: str) -> FittedJob:
    """Check that a job fits its bundle, and fill in its split: by default the bundle's last one.

    Raises:
        ConfigError: the bundle does not have the job's split or levels, or trains other parameters.
    """
    fitted = FittedJob.unchecked(job, manifest, bundle_sha256)
    if fitted.split not in manifest.splits:
        raise ConfigError(
            f"split = {fitted.split} is not in the bundle; it has {', '.join(map(str, manifest.splits))}",
            "change split in the job, or re-export with covey export --split",
        )
    if job.train not in (None, manifest.train):
        raise ConfigError(
            f'train = "{job.train}" does not fit the bundle, which trains "{manifest.train}"',
            f"re-export with covey export --train {job.train}, or change train in the job",
        )
    if job.step.keeps_moment and manifest.train != "lora":
        raise ConfigError(
            "curvature and sign_momentum would keep a second vector as large as the model, which trains every weight",
            "leave them out of the job's [step], or export with --train lora",
        )
    _check_levels(job, manifest, fitted.levels)
    if job.frozen_rounds:
        _check_front(job, manifest, fitted)
    return fitted


def _is_behind(level: Level, split: int, n_layers: int) -> bool:
    """Whether a level trains nothing before a split."""
    return kind_of(level) == "top" and split + trained_layers(level) <= n_layers


def _of_kinds(levels: Sequence[Level], kinds: Collection[LevelKind]) -> list[Level]:
    return [level for level in levels if kind_of(level) in kinds]


def _check_front(job: Job, manifest: Manifest, fitted: FittedJob) -> None:
    """Check that a job whose front is frozen trains something, and nothing before its split."""
    if front_size(manifest.parameters, fitted.split) == total_size(manifest.parameters):
        raise ConfigError(
            f'front = "{job.front}": nothing is trained behind split {fitted.split} of this bundle',
            "choose a smaller split, or re-export the bundle with --lora-layers behind the split",
        )
    n_layers = manifest.model.layers
    before = [level for level in fitted.levels if not _is_behind(level, fitted.split, n_layers)]
    if before:
        most = n_layers - fitted.split
        lower = f"use levels up to {top_level(most)}" if most else "use a smaller split"
        raise ConfigError(
            f'front = "{job.front}": level {before[0]} of [stld] trains layers before split {fitted.split}',
            f'set kinds = ["top"] in [stld] and {lower}; or leave front out',
        )


def _check_levels(job: Job, manifest: Manifest, levels: list[Level]) -> None:
    if job.stld is None:
        return
    if manifest.train != "lora":
        raise ConfigError("[stld] trains LoRA bundles only, this one trains every weight", "leave [stld] out")
    if not manifest.levels:
        raise ConfigError("the bundle has no training graphs for [stld]", "re-export with covey export --levels")
    if not levels:
        raise ConfigError(
            f"kinds = [{', '.join(job.stld.kinds)}]: the bundle has no such level; it has {listed(manifest.levels)}",
            "change kinds in the job's [stld], or re-export with covey export --levels",
        )
    drops = _of_kinds(levels, ["drop"])
    if job.stld.rescale and not all(graph.rescales for graph in manifest.graphs if graph.level in drops):
        raise ConfigError(
            "rescale = true: the bundle's training graphs do not rescale residuals",
            "leave rescale out, or re-export with covey export --levels --rescale",
        )
    for level in [*(job.stld.levels or []), *(level for level in job.stld.device_levels.values() if level)]:
        if level not in manifest.levels:
            raise ConfigError(
                f"level {level} of [stld] is not in the bundle; it has {listed(manifest.levels)}",
                "change the job's levels, or re-export with covey export --levels",
            )
    for name, level in job.stld.device_levels.items():
        if level and level not in levels:
            raise ConfigError(
                f"[stld] gives {name} level {level}, but its levels are {listed(levels)}",
                "add the level to levels, or give the device one of them",
            )
