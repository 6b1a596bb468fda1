"""AdamW (Loshchilov and Hutter, 2019) on parts of one flat vector, in NumPy.

A slice that a step leaves out, such as a dropped layer, keeps its moments and its step count. Its bias correction
counts its own updates only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from edge_runtime.values import FloatVector


@dataclass(frozen=True)
class AdamWOptions:
    """AdamW's hyperparameters.

    Attributes:
        learning_rate: roughly the largest change of a parameter in one step.
        weight_decay: times the learning rate, the share of a parameter that each step subtracts from it.
        beta1: decay of the mean of the gradients.
        beta2: decay of the mean of their squares.
        eps: added to the root of that mean.
    """

    learning_rate: float
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8


class AdamW:
    """The optimizer's state over a vector of ``size`` parameters, all float32.

    Args:
        size: length of the vector.
        options: the hyperparameters.
    """

    def __init__(self, size: int, options: AdamWOptions) -> None:
        self._options = options
        self._mean: FloatVector = np.zeros(size, dtype=np.float32)
        self._square: FloatVector = np.zeros(size, dtype=np.float32)
        self._steps: dict[tuple[int, int], int] = {}

    def step(self, theta: FloatVector, gradient: FloatVector, parts: Iterable[slice]) -> None:
        """Update ``theta`` in place.

        Args:
            theta: float32, (size,), changed in ``parts`` only.
            gradient: float32, (size,); read in ``parts`` only.
            parts: the slices to update; a slice must have the same bounds in every step.
        """
        o = self._options
        for part in parts:
            count = self._steps[part.start, part.stop] = self._steps.get((part.start, part.stop), 0) + 1
            g, mean, square = gradient[part], self._mean[part], self._square[part]
            mean *= np.float32(o.beta1)
            mean += np.float32(1 - o.beta1) * g
            square *= np.float32(o.beta2)
            square += np.float32(1 - o.beta2) * g * g
            change = np.sqrt(square * np.float32(1 / (1 - o.beta2**count)))
            change += np.float32(o.eps)
            np.divide(mean, change, out=change)
            change *= np.float32(o.learning_rate / (1 - o.beta1**count))
            theta[part] *= np.float32(1 - o.learning_rate * o.weight_decay)
            theta[part] -= change
