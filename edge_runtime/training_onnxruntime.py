"""The training engine on ONNX Runtime: see training_bundle."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import onnxruntime as ort

from edge_runtime.engines.bundle_training import BundleTrainingEngine
from edge_runtime.engines.onnx_engine import make_session
from edge_runtime.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.bundle.manifest import Graph
    from edge_runtime.data.batch import Batch
    from edge_runtime.files.tensor_file import Tensor


class _SessionRunner:
    """See training_bundle.TrainingRunner."""

    def __init__(self, bundle: Bundle, graph: Graph, threads: int) -> None:
        self._graph = graph
        self._session = make_session(str(bundle.file(graph.file)), threads)

    def run(self, bound: Mapping[str, Tensor], batch: Batch) -> list[Tensor]:
        """Run the graph."""
        feeds = {name: ort.OrtValue.ortvalue_from_numpy(tensor) for name, tensor in bound.items()}
        for tensor in self._graph.inputs:
            if tensor.role == "batch":
                feeds[tensor.name] = ort.OrtValue.ortvalue_from_numpy(getattr(batch, tensor.source))
        names = [output.name for output in self._graph.outputs]
        options = ort.RunOptions()
        # Levels and shapes change from batch to batch: what one run leaves in the allocator would not fit the next.
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        try:
            values = self._session.run_with_ort_values(names, feeds, options)
        except Exception as error:  # ONNX Runtime's exceptions have no common base but Exception
            raise TrainingError(
                f"ONNX Runtime failed on a batch of {batch.rows} × {batch.input_ids.shape[1]} tokens: {error}",
                "use a smaller batch or fewer layers if memory is short; "
                "check the bundle with: covey-edge bundle verify",
            ) from error
        return [value.numpy() for value in values]


class OnnxTrainingEngine(BundleTrainingEngine):
    """Loss and gradients of a bundle's levels on ONNX Runtime.

    Args:
        bundle: an opened bundle.
        threads: threads of one operator; 0 lets ONNX Runtime take one a core.
    """

    def __init__(self, bundle: Bundle, threads: int = 0) -> None:
        super().__init__(bundle, "onnxruntime", functools.partial(_SessionRunner, threads=threads))
