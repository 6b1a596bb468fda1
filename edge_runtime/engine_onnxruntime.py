"""The engine on ONNX Runtime: one mapped weights file serves all graphs, trainable parameters come as inputs.

Weights are bound as inputs that point into the mapping, trainable parameters as views of one workspace a block, so
that perturbing writes where the session reads. All sessions of the process share one allocator: going through front
and back costs no more than the larger of the two.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

from edge_runtime.errors import BundleError, TrainingError
from edge_runtime.layout import front_size, total_size
from edge_runtime.reads import read_slices, rows_read
from edge_runtime.tensor_file import map_tensors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_runtime.batch import Batch, CompletionBatch
    from edge_runtime.bundle import Bundle
    from edge_runtime.engine import TokenIds
    from edge_runtime.layout import Parameter
    from edge_runtime.manifest import Graph
    from edge_runtime.perturbation import FloatVector
    from edge_runtime.tensor_file import Tensor

OrtValues = dict[str, Any]
Boundary = OrtValues
"""What crosses the cut: ONNX Runtime's own tensors, by the name under which the front graph gives them."""


@functools.cache
def _share_allocator() -> None:
    """Register the allocator that every session of this process uses; it grows by what is asked for."""
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    grow_as_requested = ort.OrtArenaCfg({"arena_extend_strategy": 1})
    ort.create_and_register_allocator(memory, grow_as_requested)


def make_session(path: str, threads: int) -> ort.InferenceSession:
    """Load a graph for the CPU.

    Args:
        path: an ONNX file.
        threads: threads of one operator; 0 lets ONNX Runtime take one a core.

    Raises:
        BundleError: ONNX Runtime cannot load it.
    """
    _share_allocator()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_mem_pattern = False  # patterns are kept for each shape: batches have many
    options.add_session_config_entry("session.use_env_allocators", "1")
    try:
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no common base but Exception
        raise BundleError(
            f"ONNX Runtime cannot load {path}: {error}", "export with a newer Covey, or upgrade"
        ) from error


class _GraphRunner:
    """One graph with its weights bound."""

    def __init__(
        self, bundle: Bundle, graph: Graph, weights: dict[str, Tensor], trainable: dict[str, Tensor], threads: int
    ) -> None:
        self._session = make_session(str(bundle.file(graph.file)), threads)
        self._outputs = [output.name for output in graph.outputs]
        self._batch_inputs = [(i.name, i.source) for i in graph.inputs if i.role == "batch"]
        self._boundary_inputs = [(i.name, i.source) for i in graph.inputs if i.role == "boundary"]
        self._bound: OrtValues = {}
        for tensor in graph.inputs:
            if tensor.role in ("batch", "boundary"):
                continue
            source = trainable if tensor.role == "trainable" else weights
            if tensor.source not in source or list(source[tensor.source].shape) != tensor.shape:
                raise BundleError(f"{graph.file} needs {tensor.source} {tensor.shape}: not there", "export again")
            self._bound[tensor.name] = ort.OrtValue.ortvalue_from_numpy(source[tensor.source])
        self._trainable_inputs = [(i.name, i.source) for i in graph.inputs if i.role == "trainable"]

    def bind(self, trainable: dict[str, Tensor]) -> None:
        """Read the trainable parameters from other arrays from now on."""
        for name, source in self._trainable_inputs:
            self._bound[name] = ort.OrtValue.ortvalue_from_numpy(trainable[source])

    def run(self, batch: Batch, boundary: Boundary | None) -> OrtValues:
        feeds = dict(self._bound)
        for name, source in self._batch_inputs:
            feeds[name] = ort.OrtValue.ortvalue_from_numpy(getattr(batch, source))
        for name, source in self._boundary_inputs:
            feeds[name] = (boundary or {})[source]
        try:
            values = self._session.run_with_ort_values(self._outputs, feeds)
        except Exception as error:  # ONNX Runtime's exceptions have no common base but Exception
            raise TrainingError(
                f"ONNX Runtime failed on a batch of {batch.rows} × {batch.input_ids.shape[1]} tokens: {error}",
                "use a smaller batch if memory is short; check the bundle with: covey-edge bundle verify",
            ) from error
        return dict(zip(self._outputs, values, strict=True))


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


class OnnxEngine:
    """Front and back of a bundle at one split.

    Where every weight is trained, the two workspaces lie in the same memory: a step writes a block's workspace just
    before it runs the block, so the larger block is all that a process holds.

    Args:
        bundle: an opened bundle.
        split: one of its splits.
        threads: threads of one operator; 0 lets ONNX Runtime take one a core.

    Raises:
        BundleError: no such split, or a graph and the files do not fit.
    """

    def __init__(self, bundle: Bundle, split: int, threads: int = 0) -> None:
        manifest = bundle.manifest
        front_graph, back_graph = manifest.graph("front", split), manifest.graph("back", split)
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
        self._front = _GraphRunner(bundle, front_graph, frozen, _block_views(self._front_workspace, front), threads)
        self._back = _GraphRunner(bundle, back_graph, frozen, _block_views(self._back_workspace, back), threads)

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
        """Run the front block; the returned tensors are ONNX Runtime's own, not copied."""
        return self._front.run(batch, None)

    def back(self, boundary: Boundary, batch: Batch) -> float:
        """Run the back block; return the mean loss over the rows."""
        return float(self._back.run(batch, boundary)["loss"].numpy())

    def back_outputs(self, boundary: Boundary, batch: Batch) -> dict[str, Any]:
        """Run the back block; return what it gives beside the loss, by name: see manifest.output_names."""
        return {name: value.numpy() for name, value in self._back.run(batch, boundary).items() if name != "loss"}

    def back_logits(self, boundary: Boundary, batch: Batch) -> FloatVector:
        """Run the back block; return the logits, float32, (rows, labels)."""
        logits: FloatVector = self.back_outputs(boundary, batch)["logits"]
        return logits


class OnnxPredictor:
    """The whole model of a bundle, for prediction."""

    def __init__(self, bundle: Bundle, threads: int = 0) -> None:
        self._parameters = bundle.manifest.parameters
        self._is_full = bundle.manifest.train == "full"
        self._workspace = (
            bundle.initial_adapter() if self._is_full else np.zeros(total_size(self._parameters), dtype=np.float32)
        )
        trainable = _block_views(self._workspace, self._parameters)
        graph = bundle.manifest.graph("predict")
        self._runner = _GraphRunner(bundle, graph, frozen_tensors(bundle), trainable, threads)

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
        return {name: value.numpy() for name, value in self._runner.run(batch, None).items()}
