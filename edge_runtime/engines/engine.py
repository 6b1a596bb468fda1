"""What training needs of an engine: front and back, gradients, predictions, and where engines come from.

bundle_engine.py and bundle_training.py implement these protocols for a bundle's graphs on ONNX Runtime and ExecuTorch,
quadratic.py for a quadratic bowl whose gradient is known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.bundle.levels import Level
    from edge_runtime.bundle.manifest import Runtime
    from edge_runtime.data.batch import Batch, CompletionBatch
    from edge_runtime.values import FloatRows, FloatVector, Logits, TokenIds, TokenLosses


BoundaryT = TypeVar("BoundaryT")
ReadT_contra = TypeVar("ReadT_contra", contravariant=True)


class Engine(Protocol[BoundaryT]):
    """Runs the two blocks of a model. ``BoundaryT`` is what crosses the cut; only the engine knows its meaning.

    The trainable parameters of each block lie in a workspace that the engine reads when it runs: a step writes
    perturbed parameters straight into the memory that the runtime is bound to. The two workspaces may share memory, so
    a step writes a block's workspace before each run of the block, at least the parts that the run reads. An engine
    keeps nothing else between calls.
    """

    @property
    def front_workspace(self) -> FloatVector:
        """Trainable parameters of the front block, float32, (front size,); written by the step."""

    @property
    def back_workspace(self) -> FloatVector:
        """Trainable parameters of the back block, float32, (back size,); written by the step."""

    def front_reads(self, batch: Batch) -> Sequence[slice]:
        """Return the parts of the front workspace that a run on this batch reads."""

    def back_reads(self, batch: Batch) -> Sequence[slice]:
        """Return the parts of the back workspace that a run on this batch reads."""

    def front(self, batch: Batch) -> BoundaryT:
        """Run the front block at its workspace; the result stays valid until it is dropped."""

    def back(self, boundary: BoundaryT, batch: Batch) -> float:
        """Run the back block at its workspace; return the mean loss over the batch's rows, or its completion tokens."""


class BackStack(Protocol[ReadT_contra]):
    """Runs the back block for many adapters in one call, where an Engine runs it for one."""

    @property
    def workspace(self) -> FloatRows:
        """Trainable parameters of the back block for each adapter, float32, (most adapters, back size)."""

    def losses(self, boundary: ReadT_contra, batch: Batch, count: int) -> list[float]:
        """Run the back block at the first ``count`` rows of the workspace; return the mean loss of each.

        Up to the rounding of float32, they are the losses of Engine.back.
        """


class TrainingEngine(Protocol):
    """Loss of a model, and gradients of some of its layers, which run alone or with the others."""

    @property
    def levels(self) -> tuple[Level, ...]:
        """Levels for which there is a graph, ascending."""

    def gradients(
        self,
        theta: FloatVector,
        layers: Sequence[int],
        batch: Batch,
        out: FloatVector,
        scales: Sequence[float] | None = None,
        *,
        whole: bool = False,
    ) -> float:
        """Run the model and write the gradients of trainable parameters.

        Args:
            theta: trainable parameters, float32, whole layout.
            layers: the layers that are trained, ascending. Only they run, and their number is one of ``levels``, unless
                ``whole`` says otherwise.
            batch: the rows.
            out: receives d loss / d theta of these layers and of the parameters outside the layers, float32, whole
                layout; entries of other layers stay as they are.
            scales: factor on what each of these layers adds to its input; None: 1.
            whole: whether all layers run: then ``layers`` are the model's last ones, k of them, and ``top:k`` is one of
                ``levels``.

        Returns:
            The mean loss over the batch's rows, or over its completion tokens.

        Raises:
            BundleError: there is no graph for this number of layers, or it takes no scales.
            TrainingError: the runtime failed on the batch, or the layers are not the last ones and ``whole`` says so.
        """


class Predictor(Protocol):
    """Runs the whole model for prediction."""

    def logits(self, theta: FloatVector, batch: Batch) -> Logits:
        """Return the logits at trainable parameters ``theta``: float32, (rows, labels). Labels are not read."""

    def token_scores(self, theta: FloatVector, batch: CompletionBatch) -> tuple[TokenLosses, TokenIds]:
        """Return the losses (nats, float32) and likeliest tokens (int64) at the batch's positions, (chunks, chunk)."""


class MakesEngines(Protocol):
    """Makes the engines that a device trains with: choose.Engines, or one that shares or replaces them."""

    @property
    def runtime(self) -> Runtime:
        """The runtime whose graphs of a bundle count."""

    def make_engine(self, bundle: Bundle, split: int) -> Engine[Any]:
        """Return front and back of a bundle at a split; raises BundleError or ConfigError."""

    def make_training_engine(self, bundle: Bundle) -> TrainingEngine:
        """Return loss and gradients of a bundle's levels; raises BundleError or ConfigError."""
