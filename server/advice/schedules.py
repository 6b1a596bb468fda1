"""Which schedules an advice weighs for a bundle: what was measured, whether it is chosen, and why or why not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from edge_runtime.bundle.levels import Level, trained_layers
from server.advice.findings import (
    FORWARD_FROM_RUNS,
    FROZEN_RUNS,
    KEPT_FRONT_RUNS,
    KEPT_FRONT_TABLE,
    METHODS_TABLE,
    PROMPT,
    PROMPT_NORM,
    SCHEDULES_TABLE,
    KeptFrontRun,
    ScheduleRun,
    forward_run,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from edge_runtime.bundle.manifest import Manifest


class Weighed(msgspec.Struct, frozen=True, kw_only=True):
    """A schedule that was weighed for a job.

    Attributes:
        what: the schedule in words.
        is_chosen: whether the job has it.
        because: what was measured, with its source; or that nothing was.
    """

    what: str
    is_chosen: bool
    because: str


class KeptFront(msgspec.Struct, frozen=True):
    """A top level of a bundle with a graph that begins behind a split, and what was measured of the like.

    Attributes:
        split: the split.
        level: the level.
        run: what was measured.
    """

    split: int
    level: Level
    run: KeptFrontRun

    def tables(self) -> dict[str, dict[str, Any]]:
        """Return the tables of the job: all devices train behind the split, at the measured settings."""
        run = self.run
        stld: dict[str, Any] = {"kinds": ["top"], "levels": [self.level], "steps": run.steps}
        stld |= {"batch_size": run.batch_size, "learning_rate": run.learning_rate}
        return {"schedule": {"train_front_from": "never"}, "stld": stld}


def kept_front(manifest: Manifest, behind: Mapping[int, Collection[Level]]) -> KeptFront | None:
    """Return the level behind a kept front that is nearest to the measured one; None: none is there, or was measured.

    Args:
        manifest: the bundle's.
        behind: the levels of its training graphs that begin behind a split, by split.
    """
    run, layers = KEPT_FRONT_RUNS.get(manifest.task.kind), manifest.model.layers
    found = [(split, level) for split, levels in behind.items() for level in levels]
    if run is None or not found:
        return None

    def distance(one: tuple[int, Level]) -> tuple[float, int]:
        split, level = one
        return abs(trained_layers(level) / layers - run.trained_share), layers - split

    return KeptFront(*min(found, key=distance), run)


def weighed_kept_front(manifest: Manifest, kept: KeptFront | None, *, all_backpropagate: bool) -> Weighed:
    """Weigh training the last layers behind a kept front, on boards that can backpropagate."""
    if kept is None:
        what = "the last layers behind a kept front"
        if manifest.task.kind not in KEPT_FRONT_RUNS:
            return _unknown(what, f"it was not measured for {manifest.task.kind}")
        lacks = "the bundle has no training graphs behind a split; covey export --split 3 --levels top:3 makes one"
        return Weighed(what=what, is_chosen=False, because=lacks)
    run, share = kept.run, trained_layers(kept.level) / manifest.model.layers
    accuracy = _signed(-run.accuracy_less, run.accuracy_less_error)
    because = (
        f"with {run.trained_share:.2f} of the layers trained ({share:.2f} here), full depth took "
        f"{run.time_full_over_ours:.2f} times the time to 95% of what it gains in {run.rounds} rounds; "
        f"accuracy {accuracy} against full depth's at the end, {run.loss_ratio:.3f} times its loss, "
        f"memory {run.memory_ratio:.2f} of its ({KEPT_FRONT_TABLE})"
    )
    if run.pays and not all_backpropagate:
        because += "; not chosen, because it was not measured beside forward-only devices"
    return Weighed(
        what=f"{kept.level} behind a kept front, split {kept.split}",
        is_chosen=run.pays and all_backpropagate,
        because=because,
    )


def lost_behind(manifest: Manifest, level: Level) -> str:
    """Return what training a top level behind a kept front costs in accuracy, in words."""
    trained, layers = trained_layers(level), manifest.model.layers
    run = KEPT_FRONT_RUNS.get(manifest.task.kind)
    if run is None:
        return f"what training the last {trained} of {layers} layers costs in accuracy was not measured"
    against = _signed(-run.accuracy_less, run.accuracy_less_error)
    return (
        f"the first {layers - trained} of {layers} layers stay as they are: with {run.trained_share:.2f} of the layers "
        f"trained, accuracy ended {against} against full depth after as many rounds ({KEPT_FRONT_TABLE})"
    )


def weighed_frozen_front(manifest: Manifest, split: int) -> Weighed:
    """Weigh a frozen front on forward-only boards, at the split of the job."""
    what = "a frozen front"
    if forward_run(manifest, is_frozen=True) is PROMPT_NORM:
        return Weighed(what=what, is_chosen=True, because=_norm_against_layers())
    run = FROZEN_RUNS.get(manifest.task.kind)
    if run is None:
        return _unknown(what, f"it was not measured for {manifest.task.kind}")
    if split != manifest.model.layers or manifest.train != "lora":
        return _unknown(what, "it was measured with LoRA and the split behind the last layer alone")
    return Weighed(what=what, is_chosen=run.pays, because=f"{_against(run)} ({SCHEDULES_TABLE})")


def weighed_forward_from(manifest: Manifest, rounds: int) -> tuple[Weighed, int]:
    """Weigh letting backprop devices train alone at first, in a mixed fleet.

    Args:
        manifest: the bundle's.
        rounds: of the job.

    Returns:
        What was weighed, and the round from which forward-only devices take part.
    """
    what = "backprop devices first, forward-only ones later"
    runs = FORWARD_FROM_RUNS.get(manifest.task.kind, ())
    if not runs:
        return _unknown(what, f"it was not measured for {manifest.task.kind}"), 0
    best = max(runs, key=lambda run: (run.pays, run.accuracy_more))
    measured = "; ".join(f"for {run.share:.2f} of the rounds, {_against(run)}" for run in runs)
    because = f"with backprop devices at half depth: {measured}"
    weighed = Weighed(what=what, is_chosen=best.pays, because=f"{because} ({SCHEDULES_TABLE})")
    return weighed, round(best.share * rounds) if best.pays else 0


def _norm_against_layers() -> str:
    ours, other = PROMPT_NORM, PROMPT
    return (
        f"the final norm alone was at accuracy {ours.accuracy:.3f} after {ours.forwards_to_it:.0f} forward passes, the "
        f"last third of the layers at {other.accuracy:.3f} after {other.forwards_to_it:.0f} "
        f"({METHODS_TABLE}: {ours.name} and {other.name} on {ours.model})"
    )


def _unknown(what: str, why: str) -> Weighed:
    return Weighed(what=what, is_chosen=False, because=f"not known: {why}")


def _against(run: ScheduleRun) -> str:
    more = _signed(run.accuracy_more, run.accuracy_more_error)
    return (
        f"accuracy {more} against without it, {run.loss_ratio:.3f} times its loss, "
        f"for {run.row_passes_over_base:.2f} of the passes of a row"
    )


def _signed(value: float, error: float) -> str:
    return f"{value:+.3f} ± {error:.3f}"
