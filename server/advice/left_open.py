"""A job that says nothing of how it trains gets the settings that were measured for a task like its bundle's."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from server.advice.choice import choose
from server.advice.findings import BACKPROP_RUNS, forward_run
from server.advice.settings import About, Wanted, settings_for
from server.job.job import job_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edge_runtime.bundle.manifest import Manifest
    from server.advice.settings import Settings
    from server.job.job import Job

_LOG = logging.getLogger(__name__)

ABOUT_ELSE = frozenset(
    {
        "name", "eval_file", "eval_data", "rounds", "seed", "devices", "cohort", "over_selection", "min_reports",
        "min_devices", "deadline_s", "accept_s", "max_attempts", "eval_every", "weighting", "train",
    }
)  # fmt: skip
"""Fields of job.toml that leave open how devices train: they say what, on whose rows, with whom, and how long."""


def leaves_open(table: Mapping[str, Any]) -> bool:
    """Return whether the content of job.toml says nothing of how devices train."""
    return {"name", "eval_file"} <= table.keys() <= ABOUT_ELSE


def completed(table: dict[str, Any], manifest: Manifest, bundle_sha256: str) -> Job:
    """Return a file's job, with measured settings where it leaves them open and there are some; the log says which.

    Which devices will come is not known: those that can backpropagate do so where the bundle has graphs for it, and the
    others run forward passes.

    Args:
        table: the content of job.toml, with an absolute ``eval_file``.
        manifest: the bundle's.
        bundle_sha256: the bundle's name.

    Raises:
        ConfigError: see job_of.
    """
    settings = _measured(table, manifest, bundle_sha256) if leaves_open(table) else None
    if settings is None:
        return job_of(table)
    given = ", ".join(f"{name} = {value}" for name, value in settings.fields.items() if name not in ABOUT_ELSE)
    measured = [f"forward-only devices: {settings.forward_source}"]
    if settings.backprop_source is not None:
        measured.append(f"backprop devices: {settings.backprop_source}")
    what = "job %s leaves open how devices train, so it has what was measured (%s): %s"
    _LOG.info(what, table["name"], "; ".join(measured), given)
    return job_of({**settings.fields, **table})


def _measured(table: dict[str, Any], manifest: Manifest, bundle_sha256: str) -> Settings | None:
    """Return the settings that were measured for a task like a bundle's; None: there are none."""
    kind = manifest.task.kind
    can_backpropagate = bool(manifest.levels) and kind in BACKPROP_RUNS
    if forward_run(manifest) is None and not can_backpropagate:
        return None
    about = About(manifest, bundle_sha256, table["name"], table["eval_file"], cohort=0)
    if can_backpropagate:
        return settings_for(about, Wanted(backprop=True))
    return choose(about, [], 0, {}).settings
