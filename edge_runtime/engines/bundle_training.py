"""Loss and gradients of a bundle's levels on any runtime: see engine.TrainingEngine.

The graph of a dropout level serves every choice of active layers: their weights are bound to its slots, as views into
the mapped file. Weights of the other layers are neither bound nor read. The graph of a top level has a slot for every
layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edge_runtime.bundle.layers import check_last, check_layers, no_scales, source_of
from edge_runtime.bundle.layout import views
from edge_runtime.bundle.levels import top_level
from edge_runtime.engines.bundle_engine import bind_inputs, frozen_tensors
from edge_runtime.files.tensor_file import forget_pages

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.bundle.levels import Level
    from edge_runtime.bundle.manifest import Graph
    from edge_runtime.data.batch import Batch
    from edge_runtime.engines.bundle_engine import GraphOpener, TrainingRunner
    from edge_runtime.values import FloatVector, Tensor


class BundleTrainingEngine:
    """Loss and gradients of a bundle's levels. Each level's graph is loaded when it is first run.

    Args:
        bundle: an opened bundle.
        opener: loads the runtime's graphs.
    """

    def __init__(self, bundle: Bundle, opener: GraphOpener) -> None:
        self._bundle, self._opener = bundle, opener
        self._frozen = frozen_tensors(bundle)
        self._runners: dict[str, TrainingRunner] = {}

    @property
    def levels(self) -> tuple[Level, ...]:
        """See TrainingEngine."""
        return tuple(self._bundle.manifest.levels_for(self._opener.runtime))

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
        """See TrainingEngine."""
        manifest, level = self._bundle.manifest, top_level(len(layers)) if whole else len(layers)
        graph = manifest.training_graph(level, self._opener.runtime)
        check_layers(layers, manifest.model.layers)
        if whole:
            check_last(layers, manifest.model.layers)
        if scales is not None and not graph.rescales:
            raise no_scales()
        given = {
            tensor.name: np.array([1.0 if scales is None else scales[tensor.slot or 0]], dtype=np.float32)
            for tensor in graph.inputs
            if tensor.role == "scale"
        }
        return self._run(graph, theta, range(manifest.model.layers) if whole else layers, batch, given, out)

    def gradients_behind(
        self,
        graph: Graph,
        theta: FloatVector,
        layers: Sequence[int],
        batch: Batch,
        boundary: Mapping[str, Tensor],
        out: FloatVector,
    ) -> float:
        """Run a training graph that begins behind a split; see ``gradients``.

        Args:
            graph: one of behind.find_behind.
            theta: see ``gradients``; the part of the front is not read.
            layers: the graph's level's layers, the model's last ones.
            batch: the rows.
            boundary: what the front gives for them, by the names of its outputs.
            out: see ``gradients``.
        """
        n_layers = self._bundle.manifest.model.layers
        check_layers(layers, n_layers)
        check_last(layers, n_layers)
        given = {tensor.name: boundary[tensor.source] for tensor in graph.inputs if tensor.role == "boundary"}
        return self._run(graph, theta, range(n_layers), batch, given, out)

    def _run(
        self,
        graph: Graph,
        theta: FloatVector,
        slots: Sequence[int],
        batch: Batch,
        given: Mapping[str, Tensor],
        out: FloatVector,
    ) -> float:
        """Run a graph with the layers of ``slots``; ``given`` are inputs that are neither weights nor of the batch."""
        parameters = self._bundle.manifest.parameters
        bound = bind_inputs(graph, self._frozen, views(theta, parameters), slots) | dict(given)
        if graph.file not in self._runners:
            self._runners[graph.file] = self._opener.open_training(self._bundle, graph)
        loss, *values = self._runners[graph.file].run(bound, batch)
        targets = views(out, parameters)
        for output, value in zip(graph.outputs[1:], values, strict=True):
            targets[source_of(output, slots)][...] = value
        return float(loss)

    def forget_pages(self) -> None:
        """Take the pages of the weights out of this process's memory: the next run reads them again."""
        forget_pages(self._frozen.values())

    def bound(self, layers: Sequence[int]) -> list[str]:
        """Return the names of the weights that a run with these layers alone reads."""
        graph = self._bundle.manifest.training_graph(len(layers), self._opener.runtime)
        return [source_of(tensor, layers) for tensor in graph.inputs if tensor.role == "weight"]
