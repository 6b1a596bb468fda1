"""What the training engines of a bundle have in common, whatever runs its graphs: see engine.TrainingEngine.

One graph a level, for whatever layers are active: their weights are bound to its slots, as views into the mapped file.
What belongs to other layers is neither bound nor read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from edge_runtime.bundle.layers import check_layers, no_scales, source_of
from edge_runtime.bundle.layout import views
from edge_runtime.engines.bundle_engine import frozen_tensors
from edge_runtime.errors import BundleError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.bundle.manifest import Graph, Runtime
    from edge_runtime.data.batch import Batch
    from edge_runtime.values import FloatVector, Tensor


class TrainingRunner(Protocol):
    """One training graph."""

    def run(self, bound: Mapping[str, Tensor], batch: Batch) -> Sequence[Tensor]:
        """Run the graph; return the loss and the gradients, in the order of its outputs.

        Args:
            bound: the array of each input that is not of the batch, by the input's name: read where it is.
            batch: the rows.

        Raises:
            TrainingError: the runtime failed on this batch.
        """


class BundleTrainingEngine:
    """Loss and gradients of a bundle's levels. A level's graph is loaded when it is needed.

    Args:
        bundle: an opened bundle.
        runtime: whose graphs.
        make_runner: loads one; raises BundleError where the runtime cannot.
    """

    def __init__(
        self, bundle: Bundle, runtime: Runtime, make_runner: Callable[[Bundle, Graph], TrainingRunner]
    ) -> None:
        self._bundle, self._runtime, self._make_runner = bundle, runtime, make_runner
        self._frozen = frozen_tensors(bundle)
        self._runners: dict[int, TrainingRunner] = {}

    @property
    def levels(self) -> tuple[int, ...]:
        """See TrainingEngine."""
        return tuple(self._bundle.manifest.levels_for(self._runtime))

    def gradients(
        self,
        theta: FloatVector,
        layers: Sequence[int],
        batch: Batch,
        out: FloatVector,
        scales: Sequence[float] | None = None,
    ) -> float:
        """See TrainingEngine."""
        manifest, level = self._bundle.manifest, len(layers)
        graph = manifest.training_graph(level, self._runtime)
        check_layers(layers, manifest.model.layers)
        if scales is not None and not graph.rescales:
            raise no_scales()
        bound = self._bind(graph, layers, theta)
        for tensor in graph.inputs:
            if tensor.role == "scale":
                bound[tensor.name] = np.array([1.0 if scales is None else scales[tensor.slot or 0]], dtype=np.float32)
        if level not in self._runners:
            self._runners[level] = self._make_runner(self._bundle, graph)
        loss, *values = self._runners[level].run(bound, batch)
        targets = views(out, manifest.parameters)
        for output, value in zip(graph.outputs[1:], values, strict=True):
            targets[source_of(output, layers)][...] = value
        return float(loss)

    def bound(self, layers: Sequence[int]) -> list[str]:
        """Return the names of the weights that a run with these layers reads."""
        graph = self._bundle.manifest.training_graph(len(layers), self._runtime)
        return [source_of(tensor, layers) for tensor in graph.inputs if tensor.role == "weight"]

    def _bind(self, graph: Graph, layers: Sequence[int], theta: FloatVector) -> dict[str, Tensor]:
        """Return the graph's weights and trainable tensors: the arrays themselves, not copies."""
        trainable = views(theta, self._bundle.manifest.parameters)
        bound: dict[str, Tensor] = {}
        for tensor in graph.inputs:
            if tensor.role in ("batch", "scale"):
                continue
            source, tensors = source_of(tensor, layers), trainable if tensor.role == "trainable" else self._frozen
            if source not in tensors or list(tensors[source].shape) != tensor.shape:
                raise BundleError(f"{graph.file} needs {source} {tensor.shape}: not there", "export again")
            bound[tensor.name] = tensors[source]
        return bound
