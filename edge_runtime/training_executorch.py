"""The training engine on ExecuTorch: see training_bundle. Never imports torch."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from edge_runtime.engines.bundle_training import BundleTrainingEngine
from edge_runtime.engines.executorch_engine import batch_values, check_bounds, failed, open_graph
from edge_runtime.engines.executorch_library import ExecutorchError, set_threads
from edge_runtime.errors import BundleError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.bundle.manifest import Graph
    from edge_runtime.data.batch import Batch
    from edge_runtime.files.tensor_file import Tensor


class _FileRunner:
    """See training_bundle.TrainingRunner."""

    def __init__(self, bundle: Bundle, graph: Graph, threads: int) -> None:
        set_threads(threads)
        self._graph, self._file = graph, open_graph(bundle, graph)

    def run(self, bound: Mapping[str, Tensor], batch: Batch) -> list[Tensor]:
        """Run the graph."""
        check_bounds(batch, self._graph.bounds)
        values = batch_values(batch, self._graph.bounds)
        try:
            for index, tensor in enumerate(self._graph.inputs):
                if tensor.role != "batch":
                    self._file.bind(index, bound[tensor.name])
        except (ExecutorchError, TypeError) as error:
            raise BundleError(
                f"{self._graph.file} does not fit its manifest: {error}", "export the bundle again"
            ) from error
        try:
            for index, tensor in enumerate(self._graph.inputs):
                if tensor.role == "batch":
                    self._file.bind(index, values[tensor.source])
            return self._file.run()
        except ExecutorchError as error:
            raise failed(batch, self._graph.file, error) from error


class ExecutorchTrainingEngine(BundleTrainingEngine):
    """Loss and gradients of a bundle's levels on ExecuTorch.

    Args:
        bundle: an opened bundle whose training graphs are for ExecuTorch too.
        threads: threads of one operator; 0: one for each fast core. All engines of a process share them.
    """

    def __init__(self, bundle: Bundle, threads: int = 0) -> None:
        super().__init__(bundle, "executorch", functools.partial(_FileRunner, threads=threads))
