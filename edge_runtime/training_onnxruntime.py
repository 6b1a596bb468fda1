"""The training engine on ONNX Runtime: loss and gradients with some of a model's layers.

One graph a level, for whatever layers are active: their weights are bound to its slots, as views into the mapped file.
What belongs to other layers is neither bound nor read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnxruntime as ort

from edge_runtime.engine_bundle import frozen_tensors
from edge_runtime.engine_onnxruntime import make_session
from edge_runtime.errors import BundleError, TrainingError
from edge_runtime.layout import views
from edge_runtime.levels import check_layers, no_scales, source_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_runtime.batch import Batch
    from edge_runtime.bundle import Bundle
    from edge_runtime.engine_bundle import Boundary
    from edge_runtime.manifest import Graph
    from edge_runtime.perturbation import FloatVector


class OnnxTrainingEngine:
    """Loss and gradients of a bundle's levels; see engine.TrainingEngine. A level's session is made when it is needed.

    Args:
        bundle: an opened bundle.
        threads: threads of one operator; 0 lets ONNX Runtime take one a core.
    """

    def __init__(self, bundle: Bundle, threads: int = 0) -> None:
        self._bundle = bundle
        self._threads = threads
        self._frozen = frozen_tensors(bundle)
        self._sessions: dict[int, ort.InferenceSession] = {}

    @property
    def levels(self) -> tuple[int, ...]:
        """See TrainingEngine."""
        return tuple(self._bundle.manifest.levels)

    def gradients(
        self,
        theta: FloatVector,
        layers: Sequence[int],
        batch: Batch,
        out: FloatVector,
        scales: Sequence[float] | None = None,
    ) -> float:
        """See TrainingEngine."""
        manifest = self._bundle.manifest
        graph = manifest.training_graph(len(layers))
        check_layers(layers, manifest.model.layers)
        if scales is not None and not graph.rescales:
            raise no_scales()
        feeds = self._bind(graph, layers, theta)
        for tensor in graph.inputs:
            if tensor.role == "batch":
                feeds[tensor.name] = ort.OrtValue.ortvalue_from_numpy(getattr(batch, tensor.source))
            elif tensor.role == "scale":
                scale = 1.0 if scales is None else scales[tensor.slot or 0]
                feeds[tensor.name] = ort.OrtValue.ortvalue_from_numpy(np.array([scale], dtype=np.float32))
        names = [output.name for output in graph.outputs]
        options = ort.RunOptions()
        # Levels and shapes change from batch to batch: what one run leaves in the allocator would not fit the next.
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        try:
            loss, *values = self._session(graph).run_with_ort_values(names, feeds, options)
        except BundleError:
            raise
        except Exception as error:  # ONNX Runtime's exceptions have no common base but Exception
            raise TrainingError(
                f"ONNX Runtime failed on a batch of {batch.rows} × {batch.input_ids.shape[1]} tokens: {error}",
                "use a smaller batch or fewer layers if memory is short; "
                "check the bundle with: covey-edge bundle verify",
            ) from error
        targets = views(out, manifest.parameters)
        for output, value in zip(graph.outputs[1:], values, strict=True):
            targets[source_of(output, layers)][...] = value.numpy()
        return float(loss.numpy())

    def bound(self, layers: Sequence[int]) -> list[str]:
        """Return the names of the weights that a run with these layers reads."""
        graph = self._bundle.manifest.training_graph(len(layers))
        return [source_of(tensor, layers) for tensor in graph.inputs if tensor.role == "weight"]

    def _bind(self, graph: Graph, layers: Sequence[int], theta: FloatVector) -> Boundary:
        """Return the graph's weights and trainable tensors: the arrays themselves, not copies."""
        trainable = views(theta, self._bundle.manifest.parameters)
        bound: Boundary = {}
        for tensor in graph.inputs:
            if tensor.role in ("batch", "scale"):
                continue
            source, tensors = source_of(tensor, layers), trainable if tensor.role == "trainable" else self._frozen
            if source not in tensors or list(tensors[source].shape) != tensor.shape:
                raise BundleError(f"{graph.file} needs {source} {tensor.shape}: not there", "export again")
            bound[tensor.name] = ort.OrtValue.ortvalue_from_numpy(tensors[source])
        return bound

    def _session(self, graph: Graph) -> ort.InferenceSession:
        level = graph.level or 0
        if level not in self._sessions:
            self._sessions[level] = make_session(str(self._bundle.file(graph.file)), self._threads)
        return self._sessions[level]
