"""What a step needs of an engine: a front, a back and a prediction, at given trainable parameters.

An engine holds the frozen weights; the trainable ones come with every call and the engine keeps none of them.
ONNX Runtime (engine_onnxruntime) and a quadratic bowl with a known gradient (engine_quadratic) implement it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

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
    """Runs the two blocks of a model. ``BoundaryT`` is what crosses the cut; its meaning is the engine's own."""

    @property
    def front_size(self) -> int:
        """Length of the front block's trainable vector."""

    @property
    def back_size(self) -> int:
        """Length of the back block's trainable vector."""

    def front(self, theta_front: FloatVector, batch: Batch) -> BoundaryT:
        """Run the front block; the result stays valid until it is dropped."""

    def back(self, boundary: BoundaryT, theta_back: FloatVector, batch: Batch) -> float:
        """Run the back block and return the mean loss over the batch's rows."""


class Predictor(Protocol):
    """Runs the whole model for prediction."""

    def logits(self, theta: FloatVector, batch: Batch) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return the logits, float32, (rows, labels)."""
