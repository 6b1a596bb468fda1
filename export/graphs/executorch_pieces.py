"""Cuts a lifted program into pieces and lowers them to ``.pte`` files for ExecuTorch, delegated to XNNPACK."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
import warnings
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import torch
from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge_transform_and_lower
from executorch.exir.passes import MemoryPlanningPass
from torch import fx
from torch.fx.passes.dialect.common.cse_pass import CSEPass

from edge_runtime.bundle.manifest import GraphInput, GraphOutput
from edge_runtime.data.batch import CHUNK_TOKENS, fill_chunks
from edge_runtime.errors import StorageError
from edge_runtime.files.atomic import write_atomically
from export.errors import REPORT_HINT, ExportError
from export.graphs import descriptions, xnnpack
from export.graphs.descriptions import described_nodes
from export.graphs.xnnpack import PRODUCTS, decomposed, fast_compiler, partitioner, without_clones
from export.model import completion
from export.quiet import quiet
from export.trace.batches import shape_of, size_bounds

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch.export import ExportedProgram

    from edge_runtime.bundle.manifest import Task
    from export.trace.lift import Lifted

TensorT = TypeVar("TensorT", GraphInput, GraphOutput)
SLOW = ("mm", "bmm", "addmm", "baddbmm", "matmul", "linear", "product", "convolution")
"""Operators that portable kernels run too slowly to be left to them."""


@dataclass(frozen=True)
class Piece:
    """A part of a lifted program: a module that takes ``inputs`` by position and returns the requested outputs."""

    module: fx.GraphModule
    inputs: list[str]


@dataclass(frozen=True)
class PieceSizes:
    """The sizes of the inputs that pieces of one lifted program take.

    Attributes:
        fakes: the fake value of each input in the lifted program, by name; some of its sizes are symbols.
        names: the names of these symbols; see trace.batches.dimension_names.
        bounds: the smallest and the largest value of each named size; the size is fixed where they are equal.
    """

    fakes: Mapping[str, Any]
    names: dict[Any, str]
    bounds: Mapping[str, tuple[int, int]]

    def shape(self, name: str) -> list[int | str]:
        """Return the shape of an input: numbers, and names of symbolic sizes."""
        return shape_of(self.fakes[name], self.names)


@dataclass(frozen=True)
class LoweredGraph:
    """A graph lowered to a ``.pte``.

    Attributes:
        data: the file's content.
        portable: the number of uses of each operator that is left to ExecuTorch's portable kernels.
        delegates: number of blocks that XNNPACK runs.
        seconds: time that tracing and lowering, or reading from the cache, took.
        cached: whether the graph came from the cache.
    """

    data: bytes
    portable: dict[str, int]
    delegates: int
    seconds: float
    cached: bool = False


def cut_program(lifted: Lifted, outputs: Sequence[str], stops: Sequence[str]) -> Piece:
    """Cut out the piece of a lifted program that computes ``outputs``; values named in ``stops`` become its inputs.

    The piece's matrix products are already replaced by those that XNNPACK takes.

    Args:
        lifted: the whole program; ``outputs`` and ``stops`` name outputs of it.
        outputs: the outputs of the piece.
        stops: values that the piece takes as inputs, where it needs them, instead of computing them.
    """
    whole = lifted.module.graph
    results = next(node for node in whole.nodes if node.op == "output").args[0]
    named = dict(zip(lifted.outputs, results, strict=True))
    stop = {named[name]: name for name in stops}
    needed: set[fx.Node] = set()
    waiting = [named[name] for name in outputs]
    while waiting:
        node = waiting.pop()
        if node in needed:
            continue
        needed.add(node)
        if node not in stop:
            waiting += node.all_input_nodes
    graph = fx.Graph()
    inputs = [node for node in whole.nodes if node in needed and (node.op == "placeholder" or node in stop)]
    made = {node: graph.placeholder(stop.get(node, node.name)) for node in inputs}
    for node in whole.nodes:
        if node in needed and node not in made:
            made[node] = graph.node_copy(node, lambda argument: made[argument])
            # Replaced here, before the piece is traced, the products need no trace of their own.
            made[node].target = PRODUCTS.get(node.target, node.target)
    graph.output(tuple(made[named[name]] for name in outputs))
    return Piece(fx.GraphModule(lifted.module, graph), [stop.get(node, node.name) for node in inputs])


def trace_piece(piece: Piece, examples: Mapping[str, torch.Tensor], sizes: PieceSizes) -> ExportedProgram:
    """Trace a piece with dynamic sizes.

    Args:
        piece: the piece.
        examples: a tensor for each of its inputs, by name.
        sizes: the sizes of its inputs.

    Raises:
        ExportError: torch.export cannot trace the piece.
    """
    dims = {name: torch.export.Dim(name, min=low, max=high) for name, (low, high) in sizes.bounds.items() if low < high}
    shapes = tuple(
        {axis: dims[size] for axis, size in enumerate(sizes.shape(name)) if size in dims} for name in piece.inputs
    )
    try:
        with quiet(), torch.no_grad():
            return torch.export.export(
                piece.module, tuple(examples[name] for name in piece.inputs), dynamic_shapes=shapes
            )
    except ExportError:
        raise
    except Exception as error:  # torch.export raises exceptions of many types
        raise ExportError(
            f"torch.export cannot trace a piece of the model for ExecuTorch: {type(error).__name__}: {error}",
            REPORT_HINT,
        ) from error


def planned_sizes(
    task: Task, examples: Mapping[str, torch.Tensor], max_batch: int
) -> tuple[dict[str, torch.Tensor], dict[str, tuple[int, int]]]:
    """Return examples in the sizes that ExecuTorch's graphs take, and the bounds of the named sizes.

    Args:
        task: the task.
        examples: a tensor for each input, by name.
        max_batch: the largest number of rows per batch, for which ExecuTorch plans its memory.
    """
    bounds, made = size_bounds(task) | {"batch": (1, max_batch)}, dict(examples)
    if "chunk" in bounds:
        # ExecuTorch's scan cannot stack tensors of dynamic sizes, so the engine fills every chunk up.
        positions = max_batch * task.max_tokens
        bounds |= {"chunks": (1, max(CHUNK_TOKENS, -(-positions // CHUNK_TOKENS))), "chunk": (CHUNK_TOKENS,) * 2}
        full = fill_chunks(made["labels"].numpy(), made["positions"].numpy(), CHUNK_TOKENS)
        made |= {"labels": torch.from_numpy(full[0]), "positions": torch.from_numpy(full[1])}
    return made, bounds


def fixed(tensor: TensorT, bounds: Mapping[str, tuple[int, int]]) -> TensorT:
    """Return a tensor's description in which sizes that have only one possible value are numbers."""
    only = {name: low for name, (low, high) in bounds.items() if low == high}
    return msgspec.structs.replace(tensor, shape=[only.get(size, size) for size in tensor.shape])  # type: ignore[arg-type]


def lower_piece(
    piece: Piece, examples: Mapping[str, torch.Tensor], sizes: PieceSizes, cache: Path | None = None
) -> LoweredGraph:
    """Trace and lower a piece, or take an equal one from the cache without tracing.

    Args:
        piece: the piece.
        examples: a tensor for each of its inputs, by name.
        sizes: the sizes of its inputs.
        cache: a folder of graphs that were lowered before; None: no cache.

    Raises:
        ExportError: see trace_piece and lower.
    """
    started = time.perf_counter()
    path = None if cache is None else cache / f"{_key(piece, sizes)}.pte"
    try:
        if path is not None:
            described, _, data = path.read_bytes().partition(b"\n")
            known = json.loads(described)
            return LoweredGraph(data, known["portable"], known["delegates"], time.perf_counter() - started, cached=True)
    except (OSError, ValueError, KeyError):
        pass  # the file is missing or broken, so the piece is lowered
    lowered = lower(trace_piece(piece, examples, sizes))
    lowered = replace(lowered, seconds=time.perf_counter() - started)
    if cache is None or path is None:
        return lowered
    try:
        cache.mkdir(parents=True, exist_ok=True)
        described = json.dumps({"portable": lowered.portable, "delegates": lowered.delegates}).encode()
        write_atomically(path, described + b"\n" + lowered.data)
    except (OSError, StorageError) as error:
        logging.getLogger(__name__).warning("cannot keep a lowered graph for the next export: %s", error)
    return lowered


def default_cache() -> Path:
    """Return the folder for lowered graphs: ``$XDG_CACHE_HOME/covey/lowered``, by default below ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "covey" / "lowered"


def _key(piece: Piece, sizes: PieceSizes) -> str:
    """Hash a piece and the code that lowers it; the values and the names of its weights do not count."""
    inputs = [(str(sizes.fakes[name].dtype), sizes.shape(name)) for name in piece.inputs]
    digest = hashlib.sha256(json.dumps([inputs, sorted(sizes.bounds.items())]).encode())
    for line in described_nodes(piece.module, {}):
        digest.update(line.encode() + b"\n")
    for name in ("torch", "executorch"):
        digest.update(metadata.version(name).encode())
    for file in (__file__, descriptions.__file__, xnnpack.__file__, completion.__file__):
        digest.update(Path(file).read_bytes())
    return digest.hexdigest()


def lower(program: ExportedProgram) -> LoweredGraph:
    """Lower an exported program to a ``.pte`` in float32, delegated to XNNPACK; its inputs are not copied.

    Args:
        program: its weights are inputs, and its sizes may be dynamic up to a bound.

    Raises:
        ExportError: ExecuTorch cannot lower it, or would leave a matrix product to its portable kernels.
    """
    started = time.perf_counter()
    try:
        with quiet(), warnings.catch_warnings(), fast_compiler(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = decomposed(program)
            CSEPass()(program.graph_module)  # every layer converts the same mask to floats
            edge = to_edge_transform_and_lower(
                program,
                transform_passes=[without_clones],
                partitioner=[partitioner()],
                compile_config=EdgeCompileConfig(_check_ir_validity=False),
            )
            portable = _operators(edge.exported_program().graph_module)
            check_products(portable)
            planning = MemoryPlanningPass(alloc_graph_input=False)
            data = edge.to_executorch(ExecutorchBackendConfig(memory_planning_pass=planning)).buffer
    except ExportError:
        raise
    except Exception as error:  # ExecuTorch's exporter raises exceptions of many types
        logging.getLogger(__name__).debug("lowering failed", exc_info=True)
        raise ExportError(
            f"ExecuTorch cannot lower the model: {type(error).__name__}: {error}",
            f"export with --runtime onnx, or {REPORT_HINT}",
        ) from error
    delegates = portable.pop("executorch_call_delegate", 0)
    return LoweredGraph(bytes(data), portable, delegates, time.perf_counter() - started)


def check_products(portable: Mapping[str, int]) -> None:
    """Check that no matrix product is left to ExecuTorch's portable kernels.

    Args:
        portable: the number of uses of each operator that is left to them.

    Raises:
        ExportError: a matrix product is left to them.
    """
    slow = sorted(name for name in portable if name.split(".")[-2:][0] in SLOW)
    if slow:
        raise ExportError(
            f"ExecuTorch would run {', '.join(slow)} on slow portable kernels",
            f"export with --runtime onnx, or {REPORT_HINT}",
        )


def _operators(module: fx.GraphModule) -> dict[str, int]:
    """Count the operators of a lowered graph, including those in the bodies of its scans."""
    counts: dict[str, int] = {}
    for node in module.graph.nodes:
        if node.op == "call_function":
            name = str(getattr(node.target, "__name__", node.target))
            counts[name] = counts.get(name, 0) + 1
        elif node.op == "get_attr" and isinstance(body := getattr(module, str(node.target), None), fx.GraphModule):
            for name, count in _operators(body).items():
                counts[name] = counts.get(name, 0) + count
    return counts
