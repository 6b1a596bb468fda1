"""An engine whose gradient is known: loss(θ) = ½ (θ − θ*)ᵀ H (θ − θ*).

With it, tests and simulations run the real step, protocol and server without a model. It ignores the rows of a batch.
Central differences are exact on a quadratic, so the estimator's mean is the gradient itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edge_runtime.bundle.layers import check_last
from edge_runtime.bundle.levels import top_level
from edge_runtime.errors import BundleError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_runtime.bundle.layers import LayerSlices
    from edge_runtime.bundle.levels import Level
    from edge_runtime.data.batch import Batch
    from edge_runtime.values import FloatVector

FloatMatrix = np.ndarray[tuple[Any, ...], np.dtype[np.float64]]


class QuadraticEngine:
    """A quadratic bowl over ``front_size + back_size`` parameters.

    Args:
        hessian: symmetric, float64, (n, n). Entries between the blocks couple them.
        optimum: float64, (n,).
        front_size: number of parameters of the front block.
    """

    def __init__(self, hessian: FloatMatrix, optimum: FloatMatrix, front_size: int) -> None:
        n = optimum.size
        if hessian.shape != (n, n) or not 0 <= front_size <= n:
            raise ValueError(f"hessian {hessian.shape}, optimum {optimum.shape}, front_size {front_size} do not fit")
        self._hessian = hessian
        self._optimum = optimum
        self._front_workspace: FloatVector = np.zeros(front_size, dtype=np.float32)
        self._back_workspace: FloatVector = np.zeros(n - front_size, dtype=np.float32)

    @property
    def front_workspace(self) -> FloatVector:
        """See Engine."""
        return self._front_workspace

    @property
    def back_workspace(self) -> FloatVector:
        """See Engine."""
        return self._back_workspace

    def front_reads(self, batch: Batch) -> list[slice]:  # noqa: ARG002 the bowl has no data
        """Return all of the front."""
        return [slice(0, self._front_workspace.size)]

    def back_reads(self, batch: Batch) -> list[slice]:  # noqa: ARG002 the bowl has no data
        """Return all of the back."""
        return [slice(0, self._back_workspace.size)]

    def front(self, batch: Batch) -> FloatVector:  # noqa: ARG002 the bowl has no data
        """Return the front's parameters, which are what crosses the cut."""
        return self._front_workspace.copy()

    def back(self, boundary: FloatVector, batch: Batch) -> float:  # noqa: ARG002 the bowl has no data
        """Return the loss."""
        return self.loss(np.concatenate([boundary, self._back_workspace]))

    def loss(self, theta: FloatVector) -> float:
        """Return the loss at ``theta``, computed in float64."""
        distance = theta.astype(np.float64) - self._optimum
        return float(0.5 * distance @ self._hessian @ distance)

    def gradient(self, theta: FloatVector) -> FloatMatrix:
        """Return the exact gradient at ``theta``, float64, (n,)."""
        gradient: FloatMatrix = self._hessian @ (theta.astype(np.float64) - self._optimum)
        return gradient


class LayeredQuadraticEngine(QuadraticEngine):
    """The bowl as a stack of layers, for layer dropout: an absent layer's parameters count as 0.

    Args:
        hessian: see QuadraticEngine.
        optimum: see QuadraticEngine.
        front_size: see QuadraticEngine.
        slices: which parameters belong to which layer.
        levels: the levels that it accepts, ascending.
    """

    def __init__(
        self, hessian: FloatMatrix, optimum: FloatMatrix, front_size: int, slices: LayerSlices, levels: Sequence[Level]
    ) -> None:
        super().__init__(hessian, optimum, front_size)
        self._slices = slices
        self._levels = tuple(levels)

    @property
    def levels(self) -> tuple[Level, ...]:
        """See TrainingEngine."""
        return self._levels

    def gradients(
        self,
        theta: FloatVector,
        layers: Sequence[int],
        batch: Batch,  # noqa: ARG002 the bowl has no data
        out: FloatVector,
        scales: Sequence[float] | None = None,
        *,
        whole: bool = False,
    ) -> float:
        """See TrainingEngine; exact, computed in float64. A layer's scale is a factor on its parameters."""
        level: Level = top_level(len(layers)) if whole else len(layers)
        if level not in self._levels:
            what = f"of level {level}" if whole else f"with {level} active layers"
            raise BundleError(f"no graph {what}", f"levels are {self._levels}")
        factor = np.zeros(theta.size, dtype=np.float32)
        for part in self._slices.rest:
            factor[part] = 1
        for layer, scale in zip(layers, scales or [1.0] * len(layers), strict=True):
            factor[self._slices.layers[layer]] = scale
        trained = factor != 0
        if whole:
            check_last(layers, len(self._slices.layers))
            factor[~trained] = 1
        seen: FloatVector = theta * factor
        out[trained] = self.gradient(seen)[trained] * factor[trained]
        return self.loss(seen)
