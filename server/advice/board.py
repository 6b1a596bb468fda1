"""The advice for one board: what it would do in the job, what a round costs it, and what it will not give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import msgspec

from edge_runtime.bundle.levels import Level, kind_of, rank, trained_layers
from edge_runtime.bundle.memory_need import bytes_for, levels_that_fit, rows_that_fit
from server.advice.findings import (
    LEVELS_TABLE,
    METHODS_TABLE,
    PROMPT_NORM,
    TOP_TABLE,
    forward_run,
    lost_at,
    trains_norm,
)
from server.advice.frozen_front import warm_seconds, what_it_trains
from server.advice.quantised import lacks_of_base
from server.advice.schedules import lost_behind
from server.bandit.arms import Arm, PriceBasis, price
from server.job.job import largest_report_bytes

if TYPE_CHECKING:
    from edge_runtime.bundle.manifest import Manifest
    from edge_runtime.protocol.profile import Profile
    from server.advice.settings import Settings
    from server.job.fitted import FittedJob

_FLOAT_BYTES = 4
MEASURE = "covey-edge profile --bundle BUNDLE --output FILE"
"""The command that measures what a profile says."""


class Figure(msgspec.Struct, frozen=True):
    """A number and where it is from; the value is None where it is not known, and the source says what measures it."""

    value: float | None
    source: str


class Done(msgspec.Struct, frozen=True):
    """What a device has done with the bundle in one job.

    Attributes:
        job: name of the job.
        level: the level; None: forward passes alone.
        rounds: reports that were taken.
        mean_seconds: of a round's local steps; None: not known.
    """

    job: str
    level: Level | None
    rounds: int
    mean_seconds: float | None


@dataclass(frozen=True)
class Board:
    """A board, as far as it is known.

    Attributes:
        name: of the board or device.
        profile: its profile; None: there is none.
        memory: bytes that training may take there.
        only_forward: why it cannot backpropagate, as the device itself announced; None: it did not say so.
        done: what it has done with this bundle.
    """

    name: str
    profile: Profile | None
    memory: Figure
    only_forward: str | None = None
    done: tuple[Done, ...] = ()


class BoardAdvice(msgspec.Struct, frozen=True):
    """What one board would do.

    Attributes:
        board: its name.
        kind: how it trains.
        level: active layers, or the top level; None: forward-only.
        split: of a forward-only step; None: backprop.
        front_perturbations: P1, 0 where the front is frozen; None: backprop.
        back_perturbations: P2; None: backprop.
        steps: local steps per round.
        batch_size: rows per step.
        rows_at_once: rows of a micro-batch that fit the memory; None: forward-only, which runs the whole batch.
        settings_source: where these are from.
        seconds: of a round's local steps.
        bytes_up: of a report.
        bytes_down: per round.
        memory_bytes: at the peak of a round.
        board_memory: bytes that training may take on the board.
        because: why this kind and level.
        lacks: what it will not give, and what is not known.
        done: what it has done with this bundle, in each job and at each level: rounds, and mean seconds of one.
        frozen_front: seconds of a round's local steps with a frozen front, once each row was seen; None: backprop in a
            job that trains the front.
    """

    board: str
    kind: Literal["forward-only", "backprop"]
    level: Level | None
    split: int | None
    front_perturbations: int | None
    back_perturbations: int | None
    steps: int
    batch_size: int
    rows_at_once: int | None
    settings_source: str
    seconds: Figure
    bytes_up: Figure
    bytes_down: Figure
    memory_bytes: Figure
    board_memory: Figure
    because: str
    lacks: list[str]
    done: tuple[Done, ...] = ()
    frozen_front: Figure | None = None


def advise(board: Board, settings: Settings, tokens: int) -> BoardAdvice:
    """Return what a board would do in a job.

    Args:
        board: what is known of it.
        settings: the job.
        tokens: tokens of the longest row.
    """
    fitted = settings.fitted
    level, because = _level(board, fitted)
    profile, doubt = usable_profile(board.profile, fitted)
    lacks = [] if doubt is None else [doubt]
    lacks += lacks_of_base(fitted.manifest, None if level is not None else fitted.job.step.eps)
    arm = _arm(fitted, level)
    job, stld, rule = fitted.job, fitted.job.stld, fitted.job.rule_of(0)
    basis = PriceBasis(fitted.manifest.model.layers, tokens, job.steps, job.batch_size, rule, stld)
    seconds = _seconds(arm, basis, profile)
    if level is not None and stld is not None:
        need = fitted.need(level)
        rows = rows_that_fit(need, _whole(board.memory), stld.fewest_rows, stld.most_rows)
        memory = Figure(bytes_for(need, rows), "the bundle's manifest: weights and values of the training graph, × 1.4")
        lacks += _lacks_of_level(fitted, level)
        return BoardAdvice(
            board.name, "backprop", level, None, None, None, stld.steps, stld.batch_size, rows,
            settings.backprop_source or "", seconds, *_adapter_bytes(fitted.manifest), memory, board.memory,
            because, lacks, board.done,
            _frozen_front(arm, basis, profile, fitted) if job.frozen_rounds else None,
        )  # fmt: skip
    memory = _forward_memory(profile, fitted.split)
    lacks += _lacks_of_forward(fitted.manifest, is_frozen=fitted.job.frozen_rounds > 0)
    return BoardAdvice(
        board.name, "forward-only", None, fitted.split, 0 if rule.front_is_frozen else rule.front_perturbations,
        rule.back_perturbations,
        job.steps, job.batch_size, None, settings.forward_source, seconds,
        *_scalar_bytes(fitted), memory, board.memory, because, lacks, board.done,
        _frozen_front(arm, basis, profile, fitted),
    )  # fmt: skip


def _frozen_front(arm: Arm, basis: PriceBasis, profile: Profile | None, fitted: FittedJob) -> Figure:
    seconds = warm_seconds(arm, basis, profile)
    if seconds is None:
        return Figure(None, f"not known: no profile has this graph; run {MEASURE}")
    return Figure(round(seconds, 4), what_it_trains(fitted))


def usable_profile(profile: Profile | None, fitted: FittedJob) -> tuple[Profile | None, str | None]:
    """Return the profile if it says something of the job's bundle, and what is doubtful or missing about it."""
    if profile is None:
        return None, f"no profile of this board: seconds and forward-only memory are not known; run {MEASURE}"
    model = fitted.manifest.model
    if (profile.bundle.model, profile.bundle.layers) != (model.name, model.layers):
        what = f"its profile is of {profile.bundle.model} with {profile.bundle.layers} layers, not of this bundle"
        return None, f"{what}: seconds and forward-only memory are not known; run {MEASURE}"
    if profile.measured is None:
        return profile, f"its profile is modelled from public figures, nobody measured it; run {MEASURE}"
    if profile.bundle.sha256 != fitted.bundle_sha256:
        return profile, f"its profile is of another bundle of this model; run {MEASURE}"
    return profile, None


def _level(board: Board, fitted: FittedJob) -> tuple[Level | None, str]:
    """Return the level at which a board would train, None for forward-only, and why."""
    stld, manifest = fitted.job.stld, fitted.manifest
    if stld is None:
        return None, _why_no_backprop(manifest)
    if board.only_forward is not None:
        return None, board.only_forward
    known = _whole(board.memory)
    needs = [fitted.need(level) for level in fitted.levels]
    fit = levels_that_fit(needs, known, stld.fewest_rows)
    if not fit:
        least = min(bytes_for(need, stld.fewest_rows) for need in needs)
        return None, f"the smallest level needs {least:,} bytes, {known:,} may be had: no level fits"
    level = max(fit, key=rank)
    if known is None:
        because = "its memory is not known: a device that has too little gets a smaller level, or forward passes"
    elif level == max(fitted.levels, key=rank):
        because = f"backpropagation at the bundle's largest level fits into the {known:,} bytes that may be had"
    else:
        because = f"the largest level that fits into the {known:,} bytes that may be had"
    return level, because


def _why_no_backprop(manifest: Manifest) -> str:
    if manifest.train == "full":
        return "the bundle trains every weight, and backpropagation here trains LoRA only"
    if not manifest.levels:
        return "the bundle has no training graphs; covey export --levels makes them"
    return "the job is forward-only"


def _arm(fitted: FittedJob, level: Level | None) -> Arm:
    if level is not None:
        frozen = fitted.job.frozen_rounds > 0
        return Arm("backprop", level=level, split=fitted.split if frozen else None, front_is_frozen=frozen)
    return Arm("forward", split=fitted.split, back_perturbations=fitted.job.step.back_perturbations)


def _seconds(arm: Arm, basis: PriceBasis, profile: Profile | None) -> Figure:
    priced = price(arm, basis, profile)
    if profile is None or priced.profile_s is None:
        return Figure(None, f"not known: no profile has this graph; run {MEASURE}")
    when = "" if profile.measured is None else f" on {profile.measured.measured_at[:10]}"
    source = f"profile of {profile.facts.board}, {profile.source}{when}, rows of {basis.tokens} tokens"
    return Figure(round(priced.profile_s, 4), source)


def _forward_memory(profile: Profile | None, split: int) -> Figure:
    graphs = [] if profile is None else [profile.graph(kind, split=split) for kind in ("front", "back")]
    peaks = [graph.peak_rss_bytes for graph in graphs if graph is not None and graph.peak_rss_bytes is not None]
    if profile is None or not peaks:
        return Figure(None, f"not known: no profile has this split's memory; run {MEASURE}")
    source = f"profile of {profile.facts.board}, {profile.source}: resident memory of a process with both graphs"
    return Figure(max(peaks), source)


def _adapter_bytes(manifest: Manifest) -> tuple[Figure, Figure]:
    count = manifest.parameters[-1].stop
    every = f"4 bytes for each of the manifest's {count} trainable parameters, without the file's header"
    up = Figure(_FLOAT_BYTES * count, f"{every}; less where layers are dropped or personal")
    return up, Figure(_FLOAT_BYTES * count, every)


def _scalar_bytes(fitted: FittedJob) -> tuple[Figure, Figure]:
    job, rule = fitted.job, fitted.job.rule_of(0)
    scalars = _FLOAT_BYTES * job.steps * rule.scalars_per_step
    up = Figure(
        largest_report_bytes(job),
        f"at most: {job.steps} steps × {rule.scalars_per_step} scalars of 4 bytes, 512 more",
    )
    if job.stld is not None:
        down = _adapter_bytes(fitted.manifest)[1]
        return up, Figure(down.value, f"{down.source}: beside backprop devices, the adapter is sent")
    if job.cohort:
        source = f"{job.cohort} reports of {scalars} bytes of scalars; as much again for each round that it misses"
        return up, Figure(job.cohort * scalars, source)
    return up, Figure(None, f"{scalars} bytes of scalars for each report of a round; give --cohort")


def _lacks_of_forward(manifest: Manifest, *, is_frozen: bool) -> list[str]:
    run = forward_run(manifest, is_frozen=is_frozen)
    if run is None:
        return [f"nothing was measured for a bundle that does {manifest.task.kind} and trains {manifest.train}"]
    lacks = []
    if run.rival_accuracy is not None and run.rival_forwards_to_it is not None:
        ratio = run.forwards_to_it / run.rival_forwards_to_it
        lacks.append(
            f"forward-only took {ratio:.1f} times the forward passes of backpropagation to the accuracy "
            f"{run.accuracy:.3f}, where it ended; backpropagation went on to {run.rival_accuracy:.3f} "
            f"({METHODS_TABLE}: {run.name} on {run.model})"
        )
    if manifest.task.kind == "classify-head" and manifest.model.layers not in manifest.splits:
        lacks.append(
            "the bundle has no split behind the last layer, which saved a factor of 8 in forward passes against "
            f"MeZO ({METHODS_TABLE}); covey export --split {manifest.model.layers} makes it"
        )
    if manifest.task.kind == "classify-prompt" and not trains_norm(manifest):
        norm = PROMPT_NORM
        lacks.append(
            f"the bundle does not train the final norm alone, which was at accuracy {norm.accuracy:.3f} after "
            f"{norm.forwards_to_it:.0f} forward passes ({METHODS_TABLE}: {norm.name} on {norm.model}); covey export "
            f"--train-norm --split {manifest.model.layers} makes it"
        )
    return [*lacks, _elsewhere(run.model)]


def _lacks_of_level(fitted: FittedJob, level: Level) -> list[str]:
    manifest, layers = fitted.manifest, fitted.manifest.model.layers
    found = lost_at(manifest.task.kind, level, layers)
    if trained_layers(level) == layers:
        most = largest_report_bytes(fitted.job)
        return [f"small reports: a forward-only device of this job would send at most {most:,} bytes (the job)"]
    if fitted.job.frozen_rounds:
        return [lost_behind(manifest, level), _elsewhere("minilm")]
    what = f"{level} of {layers} layers"
    if found is None:
        return [f"what {what} cost in accuracy was not measured for {manifest.task.kind}"]
    share, lost = found
    lacks = f"{what}: at a share of {share:.2f}, accuracy ended {lost:.3f} below full depth"
    table = TOP_TABLE if kind_of(level) == "top" else LEVELS_TABLE
    return [f"{lacks} ({table})", _elsewhere("minilm" if manifest.task.kind == "classify-head" else "smollm2")]


def _elsewhere(model: str) -> str:
    return f"accuracies are of {model} on film reviews, not of your model and rows; covey job watch shows yours"


def _whole(figure: Figure) -> int | None:
    return None if figure.value is None else int(figure.value)
