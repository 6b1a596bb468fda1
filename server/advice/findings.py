"""Results that the advice stands on: the tables of docs/results.md, as far as a choice depends on them.

A test holds each of them against the runs in benchmarks/results.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from edge_runtime.bundle.levels import kind_of, trained_layers
from edge_runtime.bundle.overview import trained_behind_layers

if TYPE_CHECKING:
    from edge_runtime.bundle.levels import Level
    from edge_runtime.bundle.manifest import Manifest, TaskKind

METHODS_TABLE = "docs/results.md, Methods against each other"
TOP_TABLE = "docs/results.md, The last layers alone"
LEVELS_TABLE = "docs/results.md, Dropout levels, personal layers and hybrid rounds"
KEPT_FRONT_TABLE = "docs/results.md, Behind a kept front"
SCHEDULES_TABLE = "docs/results.md, Schedules over kinds of devices and over the front"


LOSS_ALLOWED = 1.02
"""The most by which a cheaper schedule may raise the held-out loss."""


@dataclass(frozen=True)
class ForwardRun:
    """A forward-only method's runs (mean of three seeds on test rows), and backprop's with the same forwards.

    Attributes:
        model: the model, as benchmarks/results/convergence.jsonl names it.
        mode: what it trained.
        name: name of the entry.
        split_share: the split over the number of layers.
        rounds: rounds of a run.
        steps: local steps per round.
        batch_size: rows per step.
        back_perturbations: P2; P1 was 1.
        learning_rate: the best on validation rows; of spzo-norm-soon, that which was soonest at MeZO's loss there.
        accuracy: held-out accuracy at the end, 0 … 1.
        forwards_to_it: forward equivalents after which the mean accuracy reached ``accuracy``.
        rival_accuracy: backprop's at the end; None: not run.
        rival_forwards_to_it: forward equivalents after which backprop's reached ``accuracy``.
    """

    model: Literal["minilm", "smollm2"]
    mode: Literal["lora", "full"]
    name: str
    split_share: float
    rounds: int
    steps: int
    batch_size: int
    back_perturbations: int
    learning_rate: float
    accuracy: float
    forwards_to_it: float
    rival_accuracy: float | None = None
    rival_forwards_to_it: float | None = None


@dataclass(frozen=True)
class BackpropRun:
    """Backpropagation at full depth, as benchmarks/results/droppeft.jsonl has it."""

    model: Literal["minilm", "smollm2"]
    rounds: int
    steps: int
    batch_size: int
    learning_rate: float


@dataclass(frozen=True)
class KeptFrontRun:
    """The top level behind a kept front that was first at 95% of full depth's gain (top_levels.jsonl).

    Attributes:
        model: the model.
        trained_share: the trained layers over all layers.
        rounds: rounds of its jobs, and of full depth's.
        steps: local steps per round.
        batch_size: rows per step.
        learning_rate: its rate.
        time_full_over_ours: seconds of full depth's gradients until there, over its own.
        accuracy_less: full depth's accuracy at the end less its own, mean of three seeds.
        accuracy_less_error: the standard error of that, paired by seed.
        loss_ratio: its held-out loss at the end over full depth's.
        memory_ratio: its memory over full depth's, the front's first run included.
    """

    model: Literal["minilm", "smollm2"]
    trained_share: float
    rounds: int
    steps: int
    batch_size: int
    learning_rate: float
    time_full_over_ours: float
    accuracy_less: float
    accuracy_less_error: float
    loss_ratio: float
    memory_ratio: float

    @property
    def pays(self) -> bool:
        """Whether it was sooner there, and at the end less accurate by no more than the error of the difference.

        A loss that was higher by more than LOSS_ALLOWED does not pay.
        """
        is_as_good = self.accuracy_less <= self.accuracy_less_error and self.loss_ratio <= LOSS_ALLOWED
        return self.time_full_over_ours > 1 and is_as_good


@dataclass(frozen=True)
class ScheduleRun:
    """A schedule's runs against those without it (schedules.jsonl): means of three seeds, paired by seed.

    Attributes:
        model: the model.
        name: name of the entry.
        base: name of the entry without the schedule.
        share: the share of the rounds after which the schedule changes something; 1: it never does.
        accuracy_more: its accuracy at the end less that of the base.
        accuracy_more_error: the standard error of that.
        loss_ratio: held-out loss at the end, over that of the base.
        row_passes_over_base: passes of a row in all reports of a job, over those of the base.
    """

    model: Literal["minilm", "smollm2"]
    name: str
    base: str
    share: float
    accuracy_more: float
    accuracy_more_error: float
    loss_ratio: float
    row_passes_over_base: float

    @property
    def pays(self) -> bool:
        """Whether it was more accurate by more than the error, or took fewer passes and was not less accurate by it.

        A loss that was higher by more than LOSS_ALLOWED does not pay.
        """
        if self.loss_ratio > LOSS_ALLOWED:
            return False
        if self.accuracy_more > self.accuracy_more_error:
            return True
        return self.row_passes_over_base < 1 and self.accuracy_more >= -self.accuracy_more_error


HEAD = ForwardRun("minilm", "lora", "spzo-head", 1.0, 16, 4, 16, 64, 0.1, 0.7200, 480.0, 0.7800, 320.0)
MIDDLE = ForwardRun("minilm", "lora", "spzo", 4 / 6, 16, 2, 16, 4, 0.015, 0.6267, 560.0, 0.7800, 240.0)
PROMPT = ForwardRun("smollm2", "lora", "spzo", 20 / 30, 8, 2, 8, 4, 0.1, 0.7083, 320.0, 0.8250, 160.0)
FULL_HEAD = ForwardRun("minilm", "full", "spzo-head", 1.0, 16, 4, 16, 64, 0.009, 0.7600, 640.0)
FULL_MIDDLE = ForwardRun("minilm", "full", "spzo", 4 / 6, 16, 2, 16, 4, 0.009, 0.6467, 640.0)
FROZEN_HEAD = ForwardRun("minilm", "lora", "spzo-frozen-head", 1.0, 16, 4, 16, 64, 0.03, 0.7378, 130.3, 0.7800, 320.0)
PROMPT_NORM = ForwardRun("smollm2", "lora", "spzo-norm-soon", 1.0, 8, 4, 8, 64, 0.9, 0.7722, 111.1, 0.8250, 240.0)
FORWARD_RUNS = (HEAD, MIDDLE, PROMPT, FULL_HEAD, FULL_MIDDLE, FROZEN_HEAD, PROMPT_NORM)

BACKPROP_RUNS: dict[TaskKind, BackpropRun] = {
    "classify-head": BackpropRun("minilm", 30, 4, 8, 0.003),
    "classify-prompt": BackpropRun("smollm2", 6, 3, 8, 0.001),
}

LOST_BY_LEVEL: dict[TaskKind, dict[float, float]] = {
    "classify-head": {4 / 6: 0.0321, 3 / 6: 0.0590, 2 / 6: 0.1026},
    "classify-prompt": {15 / 30: 0.1972},
}
"""Accuracy below that of full depth, by the share of active layers, with exact draws."""
LOST_BY_TOP_LEVEL: dict[TaskKind, dict[float, float]] = {
    "classify-head": {3 / 6: 0.0115, 2 / 6: 0.0244, 1 / 6: 0.0244},
}
"""The same by the share of trained layers, the last ones, with a front that is not frozen; after 12 rounds."""


KEPT_FRONT_RUNS: dict[TaskKind, KeptFrontRun] = {
    "classify-head": KeptFrontRun("minilm", 3 / 6, 12, 4, 8, 0.006, 1.97, 0.0013, 0.0068, 1.015, 0.58),
}
FROZEN_RUNS: dict[TaskKind, ScheduleRun] = {
    "classify-head": ScheduleRun("minilm", "frozen", "forward", 1.0, -0.0038, 0.0038, 1.002, 0.2375),
}
"""Forward-only fleets whose split is behind the last layer: the head alone is trained, and the front frozen."""
FORWARD_FROM_RUNS: dict[TaskKind, tuple[ScheduleRun, ...]] = {
    "classify-head": (
        ScheduleRun(
            "minilm",
            "half-depth-backprop-two-thirds",
            "hybrid-by-examples",
            10 / 15,
            -0.0026,
            0.0092,
            1.031,
            0.5144,
        ),
        ScheduleRun("minilm", "half-depth-backprop-alone", "hybrid-by-examples", 1.0, -0.0295, 0.0112, 1.060, 0.2778),
    )
}
"""Hybrid fleets whose backprop devices train at half depth, and alone in the first rounds; 1: in all."""


def forward_run(manifest: Manifest, *, is_frozen: bool = False) -> ForwardRun | None:
    """Return the best forward-only runs of a task like the bundle's, at a split that it has; None: there are none.

    Args:
        manifest: the bundle's.
        is_frozen: whether the front is to be frozen; runs with a frozen front are there for a head, or a final norm,
            alone.
    """
    task, full = manifest.task.kind, manifest.train == "full"
    if task == "classify-head":
        at_head = manifest.model.layers in manifest.splits
        if full:
            return FULL_HEAD if at_head else FULL_MIDDLE
        if at_head and is_frozen:
            return FROZEN_HEAD
        return HEAD if at_head else MIDDLE
    if task != "classify-prompt" or full:
        return None
    return PROMPT_NORM if is_frozen and trains_norm(manifest) else PROMPT


def trains_norm(manifest: Manifest) -> bool:
    """Return whether a bundle trains the final norm of a language model, alone behind one of its splits."""
    return manifest.model.layers in manifest.splits and trained_behind_layers(manifest) == "final norm"


def lost_at(task: TaskKind, level: Level, layers: int) -> tuple[float, float] | None:
    """Return the nearest measured share of trained layers and the accuracy lost at it; None: nothing was measured."""
    known = (LOST_BY_TOP_LEVEL if kind_of(level) == "top" else LOST_BY_LEVEL).get(task)
    if not known:
        return None
    share = min(known, key=lambda measured: abs(measured - trained_layers(level) / layers))
    return share, known[share]
