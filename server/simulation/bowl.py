"""A task for simulations without a model: a layered quadratic bowl, with a manifest that lists no files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edge_runtime.bundle.adapter import adapter_sha256
from edge_runtime.bundle.layers import layer_slices
from edge_runtime.bundle.layout import Parameter, front_size, total_size
from edge_runtime.bundle.levels import ascending
from edge_runtime.bundle.manifest import Golden, Manifest, Model, Task, format_version_of
from edge_runtime.bundle.manifest_file import bundle_sha256, encode_manifest
from edge_runtime.engines.quadratic import LayeredQuadraticEngine
from server.evaluation import Evaluation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from edge_runtime.bundle.levels import Level
    from edge_runtime.values import FloatVector

ROWS = 32
"""Number of rows that each device announces."""
_APART = 0.1
"""Standard deviation of the devices' optima around the common one."""
_A_LAYER = 8
"""Parameters per layer."""
_TOKENS = 64
"""Tokens of the longest row: the shape of the modelled profiles."""


class NoRows:
    """A device's rows, where the loss does not depend on rows."""

    def __len__(self) -> int:
        return ROWS

    def batch(self, indices: Sequence[int]) -> Any:  # noqa: ANN401, ARG002 the bowl ignores the batch
        """Return nothing."""
        return None


class Bowl:
    """A quadratic task in ``layers`` layers.

    Args:
        layers: L.
        splits: splits, as in a manifest.
        levels: levels, as in a manifest.
        devices: number of devices; each has an optimum of its own around the common one.
        rng: source of the bowl's shape.
    """

    def __init__(
        self, layers: int, splits: Sequence[int], levels: Sequence[Level], devices: int, rng: np.random.Generator
    ) -> None:
        parameters = [Parameter(f"layer.{layer}", [_A_LAYER], layer, layer * _A_LAYER) for layer in range(layers)]
        size = total_size(parameters)
        self.manifest = Manifest(
            format_version=format_version_of(levels),
            created_by={},
            model=Model("bowl", "quadratic", layers, size),
            task=Task("classify-head", ["no", "yes"], None, None, None, _TOKENS, 0),
            lora=None,
            splits=sorted(splits),
            parameters=parameters,
            weights_file="",
            adapter_file="",
            tokenizer_file="",
            golden=Golden("", 0, 0, 0.0, 0.0),
            graphs=[],
            files=[],
            levels=ascending(levels),
        )
        self.sha256 = bundle_sha256(encode_manifest(self.manifest))
        self._hessian = np.diag(rng.uniform(0.2, 1.0, size))
        self._optimum = rng.normal(scale=1.0, size=size)
        self._seed, self._devices = int(rng.integers(2**63)), devices
        self._slices = layer_slices(self.manifest)
        self._held_out = self.engine(None, self.manifest.splits[0])

    def engine(self, device: int | None, split: int) -> LayeredQuadraticEngine:
        """Return a device's engine, or (None) the one of the held-out loss."""
        optimum = self._optimum if device is None else self._optimum + self._apart(device)
        front = front_size(self.manifest.parameters, split)
        return LayeredQuadraticEngine(self._hessian, optimum, front, self._slices, self.manifest.levels)

    def _apart(self, device: int) -> NDArray[np.float64]:
        """Return how far a device's optimum is from the common one, drawn anew each time.

        Two devices after each other are apart in opposite directions, and a last one without a partner is not, so the
        common optimum is the mean of all.
        """
        if device == self._devices - 1 and device % 2 == 0:
            return np.zeros_like(self._optimum)
        rng = np.random.Generator(np.random.PCG64([self._seed, device // 2]))
        return (-1.0) ** device * rng.normal(scale=_APART, size=self._optimum.size)

    def training_engine(self, device: int) -> LayeredQuadraticEngine:
        """See SimulatedTask; gradients do not depend on the split."""
        return self.engine(device, self.manifest.splits[0])

    def rows(self, device: int) -> NoRows:  # noqa: ARG002 what a device has of its own is its optimum
        """See SimulatedTask."""
        return NoRows()

    @property
    def initial_sha256(self) -> str:
        """See adapters.Start."""
        return adapter_sha256(self.initial_adapter())

    def initial_adapter(self) -> FloatVector:
        """See adapters.Start."""
        size = total_size(self.manifest.parameters)
        start: FloatVector = np.zeros(size, dtype=np.float32)
        return start

    def evaluate(self, theta: FloatVector) -> Evaluation:
        """Return the held-out loss, the mean bowl of all devices; accuracy is exp(−loss), a stand-in."""
        loss = self._held_out.loss(np.asarray(theta))
        return Evaluation(loss, float(np.exp(-loss)))
