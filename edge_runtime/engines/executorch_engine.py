"""Loads and runs graphs on ExecuTorch, for the engines of bundle_engine.py and bundle_training.py. Never imports torch.

A graph's file is mapped, its hash is compared with the manifest's, and then those very bytes go to ExecuTorch. Weights
are bound in place in the mapped weights file, trainable parameters in the workspace that a step writes.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from edge_runtime.bundle.bounds import check_bounds
from edge_runtime.bundle.manifest import CAUSAL_LM, output_names
from edge_runtime.data.batch import CompletionBatch, fill_chunks
from edge_runtime.engines.executorch_build import VERSION
from edge_runtime.engines.executorch_library import ExecutorchError, GraphFile, map_file, set_threads
from edge_runtime.errors import BundleError, TrainingError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.bundle.manifest import Graph, Runtime
    from edge_runtime.data.batch import Batch
    from edge_runtime.engines.bundle_engine import Boundary
    from edge_runtime.values import Tensor

_BY_POSITION = frozenset(output_names(CAUSAL_LM))


class _GraphRunner:
    """See bundle_engine.Runner. Outputs are arrays."""

    def __init__(self, bundle: Bundle, graph: Graph, bound: dict[str, Tensor], threads: int) -> None:
        self._name, self._bounds = graph.file, graph.bounds
        self._outputs = [output.name for output in graph.outputs]
        indexed = list(enumerate(graph.inputs))
        self._batch_inputs = [(index, i.source) for index, i in indexed if i.role == "batch"]
        self._boundary_inputs = [(index, i.source) for index, i in indexed if i.role == "boundary"]
        self._trainable_inputs = [(index, i.source) for index, i in indexed if i.role == "trainable"]
        set_threads(threads)
        self._file = open_graph(bundle, graph)
        try:
            for index, tensor in indexed:
                if tensor.name in bound:
                    self._file.bind(index, bound[tensor.name])
        except (ExecutorchError, TypeError) as error:
            raise BundleError(f"{graph.file} does not fit its manifest: {error}", "export the bundle again") from error

    def bind(self, trainable: Mapping[str, Tensor]) -> None:
        """Read the trainable parameters from other arrays from now on."""
        for index, source in self._trainable_inputs:
            self._file.bind(index, trainable[source])

    def run(self, batch: Batch, boundary: Boundary | None, *, gives_back: bool = False) -> Boundary:  # noqa: ARG002 its memory is planned: it is the graph's
        """Run the graph."""
        check_bounds(sizes_of(batch), self._bounds)
        values = batch_values(batch, self._bounds)
        try:
            for index, source in self._batch_inputs:
                self._file.bind(index, values[source])
            for index, source in self._boundary_inputs:
                self._file.bind(index, (boundary or {})[source])
            outputs = dict(zip(self._outputs, self._file.run(), strict=True))
        except ExecutorchError as error:
            raise failed(batch, self._name, error) from error
        if isinstance(batch, CompletionBatch):
            width = batch.labels.shape[1]
            outputs = {name: v[:, :width] if name in _BY_POSITION else v for name, v in outputs.items()}
        return outputs

    def to_numpy(self, value: Any) -> Any:  # noqa: ANN401 the other runtimes' outputs are of their own kinds
        """Return an output as an array: it is one."""
        return value

    def to_value(self, array: Tensor) -> Tensor:
        """Return what a boundary input is bound to: the array itself."""
        return array


def batch_values(batch: Batch, bounds: Mapping[str, int]) -> dict[str, Tensor]:
    """Return the fields of a batch, with chunks of positions filled up to the one width that a graph takes."""
    values: dict[str, Tensor] = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    if isinstance(batch, CompletionBatch):
        labels, positions = fill_chunks(batch.labels, batch.positions, bounds["chunk"])
        values |= {"labels": labels, "positions": positions}
    return values


def failed(batch: Batch, file: str, error: ExecutorchError) -> TrainingError:
    """Return the error of a batch on which ExecuTorch failed."""
    return TrainingError(
        f"ExecuTorch failed on a batch of {batch.rows} × {batch.input_ids.shape[1]} tokens in {file}: {error}",
        "use a smaller batch if memory is short; check the bundle with: covey-edge bundle verify",
    )


def open_graph(bundle: Bundle, graph: Graph) -> GraphFile:
    """Compare the hash of one of a bundle's graphs with the manifest's, and open the graph.

    Raises:
        BundleError: the file was altered, is of another version of ExecuTorch, needs a delegate that is not there, or
            is not what its manifest says.
    """
    path, entry = bundle.file(graph.file), bundle.manifest.file(graph.file)
    data = map_file(path)
    if len(data) != entry.size_bytes or hashlib.sha256(data).hexdigest() != entry.sha256:
        raise BundleError(
            f"the bundle's file {graph.file} was altered: its size or hash is not the manifest's; it is not run",
            "fetch or export the bundle again",
        )
    try:
        file = GraphFile(path, data)
    except ExecutorchError as error:
        raise BundleError(
            f"ExecuTorch {VERSION} cannot load {graph.file}: {error}",
            f"export the bundle with the same version of ExecuTorch; it was made with {_made_with(bundle)}",
        ) from error
    if (file.inputs, file.outputs) != (len(graph.inputs), len(graph.outputs)):
        raise BundleError(
            f"{graph.file} has {file.inputs} inputs and {file.outputs} outputs, its manifest says "
            f"{len(graph.inputs)} and {len(graph.outputs)}",
            "export the bundle again",
        )
    return file


def _made_with(bundle: Bundle) -> str:
    return bundle.manifest.created_by.get("executorch", "an unknown one")


def sizes_of(batch: Batch) -> dict[str, int]:
    """Return a batch's named sizes, as a graph's bounds name them."""
    rows, tokens = batch.input_ids.shape
    sizes = {"batch": rows, "tokens": tokens}
    if batch.labels.ndim == 2:
        sizes |= {"chunks": batch.labels.shape[0], "chunk": batch.labels.shape[1]}
    return sizes


class _TrainingGraphRunner:
    """See bundle_engine.TrainingRunner."""

    def __init__(self, bundle: Bundle, graph: Graph, threads: int) -> None:
        set_threads(threads)
        self._graph, self._file = graph, open_graph(bundle, graph)

    def run(self, bound: Mapping[str, Tensor], batch: Batch) -> list[Tensor]:
        """Run the graph."""
        check_bounds(sizes_of(batch), self._graph.bounds)
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


@dataclass(frozen=True)
class ExecutorchOpener:
    """Loads graphs on ExecuTorch: see bundle_engine.GraphOpener.

    Attributes:
        threads: threads of one operator; 0: one for each fast core that may be used. All graphs of a process share
            them.

    Opening raises BundleError where the file was altered, is of another version of ExecuTorch, or needs a delegate that
    is not there, and ConfigError where the engine's library cannot be loaded or compiled.
    """

    threads: int = 0
    runtime: ClassVar[Runtime] = "executorch"

    def open(self, bundle: Bundle, graph: Graph, bound: dict[str, Tensor]) -> _GraphRunner:
        """See GraphOpener."""
        return _GraphRunner(bundle, graph, bound, self.threads)

    def open_training(self, bundle: Bundle, graph: Graph) -> _TrainingGraphRunner:
        """See GraphOpener."""
        return _TrainingGraphRunner(bundle, graph, self.threads)
