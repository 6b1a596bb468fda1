"""The job that an advice describes: its settings for a bundle, each with where it is from, and the file of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edge_runtime.bundle.levels import kind_of
from server.advice.findings import (
    BACKPROP_RUNS,
    FROZEN_RUNS,
    KEPT_FRONT_TABLE,
    LEVELS_TABLE,
    METHODS_TABLE,
    SCHEDULES_TABLE,
    forward_run,
)
from server.job.fitted import fit_to_bundle
from server.job.job import job_of

if TYPE_CHECKING:
    from edge_runtime.bundle.manifest import Manifest
    from server.advice.schedules import KeptFront
    from server.job.fitted import FittedJob

_DEFAULTS = "the defaults of job.toml: nothing was measured for such a bundle"


@dataclass(frozen=True)
class Settings:
    """A job for a bundle.

    Attributes:
        fields: the content of job.toml.
        fitted: the same, decoded and fitted to the bundle.
        forward_source: where the settings of forward-only devices are from.
        backprop_source: where those of backprop devices are from; None: the job has none.
    """

    fields: dict[str, Any]
    fitted: FittedJob
    forward_source: str
    backprop_source: str | None


@dataclass(frozen=True)
class About:
    """What a job is for.

    Attributes:
        manifest: the bundle's.
        bundle_sha256: the bundle's name.
        name: name of the job.
        eval_file: absolute path of the held-out rows.
        cohort: reports per round; 0: one from every device.
    """

    manifest: Manifest
    bundle_sha256: str
    name: str
    eval_file: str
    cohort: int


@dataclass(frozen=True)
class Wanted:
    """Which kind of job is wanted.

    Attributes:
        backprop: whether devices that can do it train by backpropagation, where the bundle has graphs for that.
        kept: the top level at which they train behind a kept front; None: the front is trained.
        forward_from: the round from which forward-only devices take part beside them.
        is_frozen: whether a forward-only job's front is frozen.
    """

    backprop: bool
    kept: KeptFront | None = None
    forward_from: int = 0
    is_frozen: bool = False


def settings_for(about: About, wanted: Wanted) -> Settings:
    """Return the settings that fit a bundle.

    Raises:
        ConfigError: the name is none for a job.
    """
    manifest = about.manifest
    fields: dict[str, Any] = {"name": about.name, "eval_file": about.eval_file}
    step: dict[str, Any] = {}
    run, layers = forward_run(manifest, is_frozen=wanted.is_frozen), manifest.model.layers
    forward_source = _DEFAULTS
    if run is not None:
        split = min(manifest.splits, key=lambda have: abs(have / layers - run.split_share))
        fields |= {"rounds": run.rounds, "steps": run.steps, "batch_size": run.batch_size, "split": split}
        step = {"front_perturbations": 1, "back_perturbations": run.back_perturbations}
        step["learning_rate"] = run.learning_rate
        forward_source = f"{METHODS_TABLE}: {run.name} on {run.model}"
    if about.cohort:
        fields["cohort"] = about.cohort
    tables: dict[str, Any] = {"step": step} if step else {}
    if wanted.is_frozen:
        tables["schedule"] = {"train_front_from": "never"}
        if manifest.task.kind in FROZEN_RUNS:
            forward_source += f"; the frozen front: {SCHEDULES_TABLE}"
    backprop_source = None
    if wanted.kept is not None:
        backprop_source = f"{KEPT_FRONT_TABLE}, on {wanted.kept.run.model}"
        tables |= wanted.kept.tables()
        fields |= {"rounds": wanted.kept.run.rounds, "split": wanted.kept.split}
    elif wanted.backprop and manifest.levels and manifest.train == "lora":
        more, tables["stld"], backprop_source = _backprop(manifest)
        fields |= more
    if wanted.forward_from:
        tables["schedule"] = {"forward_from": wanted.forward_from}
        backprop_source = f"{backprop_source}; alone at first: {SCHEDULES_TABLE}"
    fields |= tables
    fitted = fit_to_bundle(job_of(fields), manifest, about.bundle_sha256)
    return Settings(fields, fitted, forward_source, backprop_source)


def _backprop(manifest: Manifest) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Return fields of the job, those of [stld], and where they are from."""
    measured = BACKPROP_RUNS.get(manifest.task.kind)
    if measured is None:
        return {}, _kinds(manifest), _DEFAULTS
    stld = {"steps": measured.steps, "batch_size": measured.batch_size, "learning_rate": measured.learning_rate}
    return {"rounds": measured.rounds}, _kinds(manifest) | stld, f"{LEVELS_TABLE}: full on {measured.model}"


def _kinds(manifest: Manifest) -> dict[str, Any]:
    """Return the kinds of the bundle's levels as a field of [stld]; empty where they are the default."""
    kinds = sorted({kind_of(level) for level in manifest.levels})
    return {} if kinds == ["drop"] else {"kinds": kinds}


def job_text(settings: Settings, deadline_s: int | None) -> str:
    """Return job.toml, with comments that name the sources; ``deadline_s``: of a round, None: the default."""
    plain = {key: value for key, value in settings.fields.items() if not isinstance(value, dict)}
    if deadline_s is not None:
        plain["deadline_s"] = deadline_s
    lines = [
        "# Written by covey advise. Sources:",
        f"#   forward-only devices: {settings.forward_source}",
        *([f"#   backprop devices: {settings.backprop_source}"] if settings.backprop_source is not None else []),
        *_assignments(plain),
    ]
    for name, table in settings.fields.items():
        if isinstance(table, dict):
            lines += ["", f"[{name}]", *_assignments(table)]
    return "\n".join(lines) + "\n"


def _assignments(fields: dict[str, Any]) -> list[str]:
    return [f"{key} = {json.dumps(value)}" for key, value in fields.items()]  # TOML writes such values as JSON does
