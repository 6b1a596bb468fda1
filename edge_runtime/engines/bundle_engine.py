"""Front, back and prediction of a bundle on any runtime: the workspaces, and which array each input reads.

One mapped weights file serves all graphs. Trainable parameters are views of one workspace per block, so that a step
perturbs them where the runtime reads them. A runtime contributes a GraphOpener, which loads graphs.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from edge_runtime.bundle.layers import source_of
from edge_runtime.bundle.layout import front_size, total_size
from edge_runtime.engines.reads import read_slices, rows_read
from edge_runtime.errors import BundleError
from edge_runtime.files.tensor_file import map_tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.bundle.layout import Parameter
    from edge_runtime.bundle.manifest import Graph, GraphOutput, Runtime
    from edge_runtime.data.batch import Batch, CompletionBatch
    from edge_runtime.values import FloatVector, Logits, Tensor, TokenIds, TokenLosses

Boundary = dict[str, Any]
"""What crosses the cut: the runtime's own tensors, by the names of the front graph's outputs."""


class Runner(Protocol):
    """One front, back or predict graph with its weights bound."""

    def bind(self, trainable: Mapping[str, Tensor]) -> None:
        """Bind the trainable inputs to other arrays, by the names of the layout."""

    def run(self, batch: Batch, boundary: Boundary | None, *, gives_back: bool = False) -> Boundary:
        """Run the graph; return its outputs by name. They stay valid until they are dropped.

        Args:
            batch: the rows.
            boundary: what crosses the cut; None: the graph takes nothing of it.
            gives_back: whether the runtime gives back what it would keep for the next run: memory counts, not time.

        Raises:
            TrainingError: the runtime failed on this batch.
        """

    def to_numpy(self, value: Any) -> Any:  # noqa: ANN401 the runtime's own kind
        """Return an output as an array."""

    def to_value(self, array: Tensor) -> Any:  # noqa: ANN401 the runtime's own kind
        """Return an array as what ``run`` takes for a boundary tensor; it is read in place."""


class TrainingRunner(Protocol):
    """One training graph."""

    def run(self, bound: Mapping[str, Tensor], batch: Batch) -> Sequence[Tensor]:
        """Run the graph; return the loss and the gradients, in the order of its outputs.

        Args:
            bound: the array of each input that is not a field of the batch, by the input's name; read in place.
            batch: the rows.

        Raises:
            TrainingError: the runtime failed on this batch.
        """


class GraphOpener(Protocol):
    """Loads a bundle's graphs on one runtime."""

    @property
    def runtime(self) -> Runtime:
        """The runtime's name."""

    def open(self, bundle: Bundle, graph: Graph, bound: dict[str, Tensor]) -> Runner:
        """Load a front, back or predict graph.

        Args:
            bundle: the bundle.
            graph: one of its graphs.
            bound: the array of each input that is neither a field of the batch nor a boundary, by the input's name.

        Raises:
            BundleError: the runtime cannot load it.
        """

    def open_training(self, bundle: Bundle, graph: Graph) -> TrainingRunner:
        """Load a training graph.

        Raises:
            BundleError: the runtime cannot load it.
        """


class BundleFront:
    """The front block of a bundle at one split. Its graph is loaded when it is first run, and again after close_front.

    Args:
        bundle: an opened bundle.
        split: one of its splits.
        opener: loads the runtime's graph.
        workspace: the front's trainable parameters, float32, (front size,); None: memory of its own.

    Raises:
        BundleError: the bundle has no such split; or, where the graph is loaded, the graph does not match the files.
    """

    def __init__(self, bundle: Bundle, split: int, opener: GraphOpener, workspace: FloatVector | None = None) -> None:
        manifest = bundle.manifest
        graph = manifest.graph("front", split, opener.runtime)
        if workspace is None:
            workspace = np.zeros(front_size(manifest.parameters, split), dtype=np.float32)
        self._workspace: FloatVector = workspace
        parameters = [p for p in manifest.parameters if p.layer < split]
        self._reads = functools.partial(read_slices, parameters, rows_read(graph.inputs))
        self._outputs = graph.outputs
        views = block_views(workspace, parameters)
        # A mapping of its own, which goes when the graph does, and with it the pages of the front's weights.
        self._open: Callable[[], Runner] = lambda: opener.open(
            bundle, graph, bind_inputs(graph, frozen_tensors(bundle), views)
        )
        self._front: Runner | None = None

    @property
    def front_workspace(self) -> FloatVector:
        """See Engine."""
        return self._workspace

    def front_reads(self, batch: Batch) -> list[slice]:
        """See Engine."""
        return self._reads(batch)

    @property
    def boundary_outputs(self) -> Sequence[GraphOutput]:
        """What crosses the cut: names, types and shapes."""
        return self._outputs

    def open_front(self) -> Runner:
        """Return the front's graph; load it if it is not loaded.

        Raises:
            BundleError: the graph cannot be loaded, or does not match the files.
        """
        if self._front is None:
            self._front = self._open()
        return self._front

    def close_front(self) -> bool:
        """Let go of the front's graph, and of the pages of its weights; return whether it was loaded."""
        was_open = self._front is not None
        self._front = None
        return was_open

    def front(self, batch: Batch) -> Boundary:
        """See Engine."""
        return self.open_front().run(batch, None)

    def front_arrays(self, batch: Batch) -> dict[str, Any]:
        """Run the front block at its workspace; return what crosses the cut as arrays, by name.

        The runtime keeps no memory for the next run.
        """
        runner = self.open_front()
        return {name: runner.to_numpy(value) for name, value in runner.run(batch, None, gives_back=True).items()}


class BundleEngine(BundleFront):
    """Front and back of a bundle at one split.

    Where every weight is trained, the two workspaces share memory: a step writes a block's workspace just before it
    runs the block, so that the process holds no more than the larger block.

    Args:
        bundle: an opened bundle.
        split: one of its splits.
        opener: loads the runtime's graphs.

    Raises:
        BundleError: the bundle has no such split, or a graph does not match the files.
    """

    def __init__(self, bundle: Bundle, split: int, opener: GraphOpener) -> None:
        manifest = bundle.manifest
        cut = front_size(manifest.parameters, split)
        sizes = (cut, total_size(manifest.parameters) - cut)
        memory: FloatVector = np.zeros(max(sizes) if manifest.train == "full" else sum(sizes), dtype=np.float32)
        super().__init__(bundle, split, opener, memory[: sizes[0]])
        graph = manifest.graph("back", split, opener.runtime)
        self._back_workspace: FloatVector = memory[memory.size - sizes[1] :]
        back = [p for p in manifest.parameters if p.layer >= split]
        self._back_reads = functools.partial(read_slices, back, rows_read(graph.inputs))
        views = block_views(self._back_workspace, back)
        self._back = opener.open(bundle, graph, bind_inputs(graph, frozen_tensors(bundle), views))

    @property
    def back_workspace(self) -> FloatVector:
        """See Engine."""
        return self._back_workspace

    def back_reads(self, batch: Batch) -> list[slice]:
        """See Engine."""
        return self._back_reads(batch)

    def boundary_of(self, arrays: Mapping[str, Tensor]) -> Boundary:
        """Return arrays, by the names of ``boundary_outputs``, as what ``back`` takes; they are read in place."""
        return {name: self._back.to_value(array) for name, array in arrays.items()}

    def back(self, boundary: Boundary, batch: Batch) -> float:
        """Run the back block; return the mean loss over the rows."""
        return float(self._back.to_numpy(self._back.run(batch, boundary)["loss"]))

    def back_outputs(self, boundary: Boundary, batch: Batch) -> dict[str, Any]:
        """Run the back block; return its outputs other than the loss, by name: see manifest.output_names."""
        outputs = self._back.run(batch, boundary)
        return {name: self._back.to_numpy(value) for name, value in outputs.items() if name != "loss"}


class BundlePredictor:
    """The whole model of a bundle, for prediction.

    Args:
        bundle: an opened bundle.
        opener: loads the runtime's graph.

    Raises:
        BundleError: the bundle has no graph for the runtime, or the graph does not match the files.
    """

    def __init__(self, bundle: Bundle, opener: GraphOpener) -> None:
        self._parameters = bundle.manifest.parameters
        self._is_full = bundle.manifest.train == "full"
        self._workspace = (
            bundle.initial_adapter() if self._is_full else np.zeros(total_size(self._parameters), dtype=np.float32)
        )
        trainable = block_views(self._workspace, self._parameters)
        graph = bundle.manifest.graph("predict", runtime=opener.runtime)
        self._runner = opener.open(bundle, graph, bind_inputs(graph, frozen_tensors(bundle), trainable))

    def logits(self, theta: FloatVector, batch: Batch) -> Logits:
        """See Predictor."""
        logits: Logits = self.outputs(theta, batch)["logits"]
        return logits

    def token_scores(self, theta: FloatVector, batch: CompletionBatch) -> tuple[TokenLosses, TokenIds]:
        """See Predictor."""
        outputs = self.outputs(theta, batch)
        return outputs["token_losses"], outputs["best_tokens"]

    def outputs(self, theta: FloatVector, batch: Batch) -> dict[str, Any]:
        """Return the graph's outputs at ``theta``, by name: see manifest.output_names.

        Where every weight is trained, ``theta`` is read in place; otherwise it is copied.
        """
        if not self._is_full:
            np.copyto(self._workspace, theta)
        elif self._workspace is not theta:
            self._workspace = theta
            self._runner.bind(block_views(theta, self._parameters))
        return {name: self._runner.to_numpy(value) for name, value in self._runner.run(batch, None).items()}


def bind_inputs(
    graph: Graph, frozen: Mapping[str, Tensor], trainable: Mapping[str, Tensor], layers: Sequence[int] = ()
) -> dict[str, Tensor]:
    """Return the array of each weight and trainable input of a graph, by the input's name; nothing is copied.

    Args:
        graph: a graph of the bundle.
        frozen: the bundle's frozen tensors, by name.
        trainable: the trainable tensors, by the names of the layout.
        layers: of a training graph, the active layers, ascending: one per slot.

    Raises:
        BundleError: a tensor is missing, or has another shape or element type.
    """
    bound = {}
    for tensor in graph.inputs:
        if tensor.role in ("batch", "boundary", "scale"):
            continue
        source, tensors = source_of(tensor, layers), trainable if tensor.role == "trainable" else frozen
        found = tensors.get(source)
        if found is None or list(found.shape) != tensor.shape or found.dtype != tensor.dtype:
            raise BundleError(
                f"{graph.file} needs {source}, {tensor.dtype} {tensor.shape}, which the bundle does not have",
                "export the bundle again with: covey export",
            )
        bound[tensor.name] = found
    return bound


def frozen_tensors(bundle: Bundle) -> dict[str, Tensor]:
    """Map the base weights and the adapter's frozen matrices, by name. PEFT's prefix keeps the names apart."""
    manifest = bundle.manifest
    if manifest.train == "full":
        return {}
    return map_tensors(bundle.file(manifest.weights_file)) | map_tensors(bundle.file(manifest.adapter_file))


def block_views(workspace: FloatVector, parameters: Sequence[Parameter]) -> dict[str, Tensor]:
    """Return the tensors of consecutive parameters by name, as views of the memory in which these lie."""
    if not parameters:
        return {}
    start = parameters[0].offset
    return {p.name: workspace[p.offset - start : p.stop - start].reshape(p.shape) for p in parameters}
