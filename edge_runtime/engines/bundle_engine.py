"""What the engines of a bundle have in common, whatever runs its graphs: workspaces, and what is bound to what.

One mapped weights file serves all graphs; trainable parameters are views of one workspace a block, so that perturbing
writes where the runtime reads. A runtime brings a Runner: one graph with its weights bound.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from edge_runtime.bundle.layout import front_size, total_size
from edge_runtime.engines.reads import read_slices, rows_read
from edge_runtime.errors import BundleError
from edge_runtime.files.tensor_file import map_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.bundle.layout import Parameter
    from edge_runtime.bundle.manifest import Graph, Runtime
    from edge_runtime.data.batch import Batch, CompletionBatch
    from edge_runtime.values import FloatVector, Tensor, TokenIds

Boundary = dict[str, Any]
"""What crosses the cut: tensors of the runtime's own kind, by the name under which the front graph gives them."""


class Runner(Protocol):
    """One graph with its weights bound."""

    def bind(self, trainable: Mapping[str, Tensor]) -> None:
        """Read the trainable parameters from other arrays from now on."""

    def run(self, batch: Batch, boundary: Boundary | None) -> Boundary:
        """Run the graph; the outputs, by name, stay valid until they are dropped.

        Raises:
            TrainingError: the runtime failed on this batch.
        """

    def to_numpy(self, value: Any) -> Any:  # noqa: ANN401 the runtime's own kind
        """Return an output as an array."""


class RunnerMaker(Protocol):
    """Loads a graph and binds its weights."""

    def __call__(self, bundle: Bundle, graph: Graph, bound: dict[str, Tensor]) -> Runner:
        """Load a graph.

        Args:
            bundle: what it is from.
            graph: one of its graphs.
            bound: the array of each input that is not of a batch or a boundary, by the input's name.

        Raises:
            BundleError: the runtime cannot load it.
        """


class BundleEngine:
    """Front and back of a bundle at one split.

    Where every weight is trained, the two workspaces lie in the same memory: a step writes a block's workspace just
    before it runs the block, so the larger block is all that a process holds.

    Args:
        bundle: an opened bundle.
        split: one of its splits.
        runtime: whose graphs.
        make_runner: loads one.

    Raises:
        BundleError: no such split, or a graph and the files do not fit.
    """

    def __init__(self, bundle: Bundle, split: int, runtime: Runtime, make_runner: RunnerMaker) -> None:
        manifest = bundle.manifest
        front_graph, back_graph = manifest.graph("front", split, runtime), manifest.graph("back", split, runtime)
        cut = front_size(manifest.parameters, split)
        sizes = (cut, total_size(manifest.parameters) - cut)
        memory: FloatVector = np.zeros(max(sizes) if manifest.train == "full" else sum(sizes), dtype=np.float32)
        self._front_workspace: FloatVector = memory[: sizes[0]]
        self._back_workspace: FloatVector = memory[memory.size - sizes[1] :]
        front = [p for p in manifest.parameters if p.layer < split]
        back = [p for p in manifest.parameters if p.layer >= split]
        self._front_reads = functools.partial(read_slices, front, rows_read(front_graph.inputs))
        self._back_reads = functools.partial(read_slices, back, rows_read(back_graph.inputs))
        frozen = frozen_tensors(bundle)
        views = _block_views(self._front_workspace, front)
        self._front = make_runner(bundle, front_graph, _bound_inputs(front_graph, frozen, views))
        views = _block_views(self._back_workspace, back)
        self._back = make_runner(bundle, back_graph, _bound_inputs(back_graph, frozen, views))

    @property
    def front_workspace(self) -> FloatVector:
        """See Engine."""
        return self._front_workspace

    @property
    def back_workspace(self) -> FloatVector:
        """See Engine."""
        return self._back_workspace

    def front_reads(self, batch: Batch) -> list[slice]:
        """See Engine."""
        return self._front_reads(batch)

    def back_reads(self, batch: Batch) -> list[slice]:
        """See Engine."""
        return self._back_reads(batch)

    def front(self, batch: Batch) -> Boundary:
        """See Engine."""
        return self._front.run(batch, None)

    def back(self, boundary: Boundary, batch: Batch) -> float:
        """Run the back block; return the mean loss over the rows."""
        return float(self._back.to_numpy(self._back.run(batch, boundary)["loss"]))

    def back_outputs(self, boundary: Boundary, batch: Batch) -> dict[str, Any]:
        """Run the back block; return what it gives beside the loss, by name: see manifest.output_names."""
        outputs = self._back.run(batch, boundary)
        return {name: self._back.to_numpy(value) for name, value in outputs.items() if name != "loss"}

    def back_logits(self, boundary: Boundary, batch: Batch) -> FloatVector:
        """Run the back block; return the logits, float32, (rows, labels)."""
        logits: FloatVector = self.back_outputs(boundary, batch)["logits"]
        return logits


class BundlePredictor:
    """The whole model of a bundle, for prediction.

    Args:
        bundle: an opened bundle.
        runtime: whose graph.
        make_runner: loads it.
    """

    def __init__(self, bundle: Bundle, runtime: Runtime, make_runner: RunnerMaker) -> None:
        self._parameters = bundle.manifest.parameters
        self._is_full = bundle.manifest.train == "full"
        self._workspace = (
            bundle.initial_adapter() if self._is_full else np.zeros(total_size(self._parameters), dtype=np.float32)
        )
        trainable = _block_views(self._workspace, self._parameters)
        graph = bundle.manifest.graph("predict", runtime=runtime)
        self._runner = make_runner(bundle, graph, _bound_inputs(graph, frozen_tensors(bundle), trainable))

    def logits(self, theta: FloatVector, batch: Batch) -> FloatVector:
        """See Predictor."""
        logits: FloatVector = self.outputs(theta, batch)["logits"]
        return logits

    def token_scores(self, theta: FloatVector, batch: CompletionBatch) -> tuple[FloatVector, TokenIds]:
        """See Predictor."""
        outputs = self.outputs(theta, batch)
        return outputs["token_losses"], outputs["best_tokens"]

    def outputs(self, theta: FloatVector, batch: Batch) -> dict[str, Any]:
        """Return what the graph gives, by name: see manifest.output_names.

        Where every weight is trained, they are read where they are, not copied.
        """
        if not self._is_full:
            np.copyto(self._workspace, theta)
        elif self._workspace is not theta:
            self._workspace = theta
            self._runner.bind(_block_views(theta, self._parameters))
        return {name: self._runner.to_numpy(value) for name, value in self._runner.run(batch, None).items()}


def _bound_inputs(graph: Graph, frozen: Mapping[str, Tensor], trainable: Mapping[str, Tensor]) -> dict[str, Tensor]:
    bound = {}
    for tensor in graph.inputs:
        if tensor.role in ("batch", "boundary"):
            continue
        source = trainable if tensor.role == "trainable" else frozen
        if tensor.source not in source or list(source[tensor.source].shape) != tensor.shape:
            raise BundleError(f"{graph.file} needs {tensor.source} {tensor.shape}: not there", "export again")
        bound[tensor.name] = source[tensor.source]
    return bound


def frozen_tensors(bundle: Bundle) -> dict[str, Tensor]:
    """Map base weights and the adapter's frozen matrices; their names do not collide (PEFT prefixes its own)."""
    manifest = bundle.manifest
    if manifest.train == "full":
        return {}
    return map_tensors(bundle.file(manifest.weights_file)) | map_tensors(bundle.file(manifest.adapter_file))


def _block_views(workspace: FloatVector, parameters: Sequence[Parameter]) -> dict[str, Tensor]:
    if not parameters:
        return {}
    start = parameters[0].offset
    return {p.name: workspace[p.offset - start : p.stop - start].reshape(p.shape) for p in parameters}
