"""A job that says nothing of how it trains gets the settings that were measured for a task like its bundle's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from server.advice.choice import choose
from server.advice.findings import BACKPROP_RUNS, forward_run
from server.advice.settings import About, Wanted, settings_for

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edge_runtime.bundle.folder import Bundle
    from server.advice.settings import Settings

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


def filled(table: dict[str, Any], bundle: Bundle) -> tuple[dict[str, Any], Settings | None]:
    """Return the content of job.toml with measured settings, where it leaves them open and there are some.

    Which devices will come is not known: those that can backpropagate do so where the bundle has graphs for it, and the
    others run forward passes.

    Args:
        table: the content of job.toml, with an absolute ``eval_file``.
        bundle: the job's bundle.

    Returns:
        The content, and where the settings are from; None: the content is as it was.

    Raises:
        ConfigError: the job is wrong.
    """
    manifest = bundle.manifest
    kind = manifest.task.kind
    if not leaves_open(table) or table.get("train", manifest.train) != manifest.train:
        return table, None
    can_backpropagate = bool(manifest.levels) and kind in BACKPROP_RUNS
    if forward_run(manifest) is None and not can_backpropagate:
        return table, None
    about = About(manifest, bundle.sha256, table["name"], table["eval_file"], cohort=0)
    settings = settings_for(about, Wanted(backprop=True)) if can_backpropagate else choose(about, [], 0, {}).settings
    return {**settings.fields, **table}, settings


def sources(settings: Settings) -> str:
    """Return, in words, which settings a job got and where they are from."""
    given = ", ".join(f"{name} = {value}" for name, value in settings.fields.items() if name not in ABOUT_ELSE)
    measured = [f"forward-only devices: {settings.forward_source}"]
    if settings.backprop_source is not None:
        measured.append(f"backprop devices: {settings.backprop_source}")
    return f"it leaves open how devices train, so it has what was measured ({'; '.join(measured)}): {given}"
