"""What a step needs of an engine: a front, a back and a prediction, at given trainable parameters.

ONNX Runtime (engine_onnxruntime) and a quadratic bowl with a known gradient (engine_quadratic) implement it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edge_runtime.perturbation import FloatVector


@dataclass(frozen=True)
class Batch:
    """Rows of tokens, padded on the right to the longest of them.

    Attributes:
        input_ids: int64, (rows, tokens).
        attention_mask: int64, (rows, tokens), 1 for a real token.
        labels: int64, (rows,), index of each row's label.
    """

    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]
    labels: NDArray[np.int64]

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self.input_ids.shape[0])


BoundaryT = TypeVar("BoundaryT")


class Engine(Protocol[BoundaryT]):
    """Runs the two blocks of a model. ``BoundaryT`` is what crosses the cut; its meaning is the engine's own.

    The trainable parameters of each block lie in a workspace that the engine reads when it runs: a step writes
    perturbed parameters there, straight into memory that the session is bound to. Nothing else is kept between calls.
    """

    @property
    def front_workspace(self) -> FloatVector:
        """Trainable parameters of the front block, float32, (front size,); written by the step."""

    @property
    def back_workspace(self) -> FloatVector:
        """Trainable parameters of the back block, float32, (back size,); written by the step."""

    def front(self, batch: Batch) -> BoundaryT:
        """Run the front block at its workspace; the result stays valid until it is dropped."""

    def back(self, boundary: BoundaryT, batch: Batch) -> float:
        """Run the back block at its workspace; return the mean loss over the batch's rows."""


class Predictor(Protocol):
    """Runs the whole model for prediction."""

    def logits(self, theta: FloatVector, batch: Batch) -> FloatVector:
        """Return the logits at trainable parameters ``theta``: float32, (rows, labels). Labels are not read."""
