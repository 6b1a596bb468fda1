"""Graphs for ExecuTorch: pieces of a lifted program, and any exported program as a ``.pte`` delegated to XNNPACK."""

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
from typing import TYPE_CHECKING, TypeVar

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
from export.errors import ExportError
from export.graphs import xnnpack
from export.graphs.xnnpack import PRODUCTS, decomposed, described_nodes, fast_compiler, partitioner, without_clones
from export.model import completion
from export.quiet import quiet
from export.trace.batches import shape_of, size_bounds

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from torch.export import ExportedProgram

    from edge_runtime.bundle.manifest import Task
    from export.trace.lift import Lifted

TensorT = TypeVar("TensorT", GraphInput, GraphOutput)
SLOW = ("mm", "bmm", "addmm", "baddbmm", "matmul", "linear", "product", "convolution")
"""Operators that must not be left to portable kernels."""


@dataclass(frozen=True)
class Piece:
    """A part of a lifted program: a module that takes ``inputs`` by position, and gives what was asked for."""

    module: fx.GraphModule
    inputs: list[str]


@dataclass(frozen=True)
class LoweredGraph:
    """A ``.pte``.

    Attributes:
        data: the file's content.
        portable: how often each operator is left to ExecuTorch's own kernels.
        delegates: number of blocks that XNNPACK runs.
        seconds: what it took.
        cached: whether it had been lowered before.
    """

    data: bytes
    portable: dict[str, int]
    delegates: int
    seconds: float
    cached: bool = False


def piece(lifted: Lifted, outputs: Sequence[str], stops: Sequence[str]) -> Piece:
    """Return the part of a lifted program that computes ``outputs``; values named in ``stops`` become its inputs.

    Its products are already those that XNNPACK takes.

    Args:
        lifted: the whole; ``outputs`` and ``stops`` are outputs of it.
        outputs: what the piece gives.
        stops: what it gets, where it needs it.
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
            # Said here, before the piece is traced, it costs no tracing of its own.
            made[node].target = PRODUCTS.get(node.target, node.target)
    graph.output(tuple(made[named[name]] for name in outputs))
    return Piece(fx.GraphModule(lifted.module, graph), [stop.get(node, node.name) for node in inputs])


def trace_piece(
    made: Piece,
    examples: Mapping[str, torch.Tensor],
    fakes: Mapping[str, Any],
    bounds: Mapping[str, tuple[int, int]],
    names: dict[Any, str],
) -> ExportedProgram:
    """Trace a piece with dynamic sizes.

    Args:
        made: the piece.
        examples: a tensor for each of its inputs, by name.
        fakes: the inputs' fake values in the lifted program, whose sizes are symbols.
        bounds: smallest and largest value of each named size; fixed where they are equal.
        names: of the symbolic sizes; see onnx_graphs.dimension_names.

    Raises:
        ExportError: torch.export cannot trace it.
    """
    dims = {name: torch.export.Dim(name, min=low, max=high) for name, (low, high) in bounds.items() if low < high}
    shapes = tuple(
        {axis: dims[size] for axis, size in enumerate(shape_of(fakes[name], names)) if size in dims}
        for name in made.inputs
    )
    try:
        with quiet(), torch.no_grad():
            return torch.export.export(
                made.module, tuple(examples[name] for name in made.inputs), dynamic_shapes=shapes
            )
    except (RuntimeError, ValueError, TypeError) as error:
        raise ExportError(
            f"a piece of the model cannot be traced for ExecuTorch: {error}", "report the model and versions"
        ) from error


def planned_sizes(
    task: Task, examples: Mapping[str, torch.Tensor], max_batch: int
) -> tuple[dict[str, torch.Tensor], dict[str, tuple[int, int]]]:
    """Return examples as graphs for ExecuTorch take them, and the bounds of their named sizes.

    Args:
        task: the task.
        examples: a tensor for each input, by name.
        max_batch: most rows of a batch: ExecuTorch plans its memory for it.
    """
    bounds, made = size_bounds(task) | {"batch": (1, max_batch)}, dict(examples)
    if "chunk" in bounds:
        # ExecuTorch's scan cannot stack tensors whose sizes change: the engine fills chunks up.
        positions = max_batch * task.max_tokens
        bounds |= {"chunks": (1, max(CHUNK_TOKENS, -(-positions // CHUNK_TOKENS))), "chunk": (CHUNK_TOKENS,) * 2}
        full = fill_chunks(made["labels"].numpy(), made["positions"].numpy(), CHUNK_TOKENS)
        made |= {"labels": torch.from_numpy(full[0]), "positions": torch.from_numpy(full[1])}
    return made, bounds


def fixed(tensor: TensorT, bounds: Mapping[str, tuple[int, int]]) -> TensorT:
    """Write sizes that can have but one value as that."""
    only = {name: low for name, (low, high) in bounds.items() if low == high}
    return msgspec.structs.replace(tensor, shape=[only.get(size, size) for size in tensor.shape])  # type: ignore[arg-type]


def lower_piece(
    made: Piece,
    examples: Mapping[str, torch.Tensor],
    fakes: Mapping[str, Any],
    bounds: Mapping[str, tuple[int, int]],
    names: dict[Any, str],
    cache: Path | None = None,
) -> LoweredGraph:
    """Trace a piece and lower it; what has been lowered before is not even traced.

    Args:
        made: the piece.
        examples: see trace_piece, also for ``fakes``, ``bounds`` and ``names``.
        fakes: as above.
        bounds: as above.
        names: as above.
        cache: a folder in which equal pieces are found again; None: none.

    Raises:
        ExportError: see trace_piece and lower.
    """
    started = time.perf_counter()
    path = None if cache is None else cache / f"{_key(made, fakes, bounds, names)}.pte"
    try:
        if path is not None:
            described, _, data = path.read_bytes().partition(b"\n")
            known = json.loads(described)
            return LoweredGraph(data, known["portable"], known["delegates"], time.perf_counter() - started, cached=True)
    except (OSError, ValueError, KeyError):
        pass  # not there, or half of a file: it is lowered
    lowered = lower(trace_piece(made, examples, fakes, bounds, names))
    lowered = replace(lowered, seconds=time.perf_counter() - started)
    if cache is None or path is None:
        return lowered
    try:
        cache.mkdir(parents=True, exist_ok=True)
        described = json.dumps({"portable": lowered.portable, "delegates": lowered.delegates}).encode()
        write_atomically(path, described + b"\n" + lowered.data)
    except (OSError, StorageError) as error:
        logging.getLogger(__name__).warning("a lowered graph cannot be kept for the next export: %s", error)
    return lowered


def default_cache() -> Path:
    """Return the folder of the user's cache in which lowered graphs are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "covey" / "lowered"


def _key(made: Piece, fakes: Mapping[str, Any], bounds: Mapping[str, tuple[int, int]], names: dict[Any, str]) -> str:
    """Hash a piece, and what lowers it: everything but the values and the names of its weights."""
    inputs = [(str(fakes[name].dtype), shape_of(fakes[name], names)) for name in made.inputs]
    digest = hashlib.sha256(json.dumps([inputs, sorted(bounds.items())]).encode())
    for line in described_nodes(made.module, {}):
        digest.update(line.encode() + b"\n")
    for name in ("torch", "executorch"):
        digest.update(metadata.version(name).encode())
    for file in (__file__, xnnpack.__file__, completion.__file__):
        digest.update(Path(file).read_bytes())
    return digest.hexdigest()


def lower(program: ExportedProgram) -> LoweredGraph:
    """Lower an exported program whose weights are inputs to a ``.pte``: float32, XNNPACK, inputs not copied.

    Args:
        program: any; its sizes may be dynamic up to a bound.

    Raises:
        ExportError: ExecuTorch cannot lower it, or a matrix product would be left to portable kernels.
    """
    started = time.perf_counter()
    try:
        with quiet(), warnings.catch_warnings(), fast_compiler(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = decomposed(program)
            CSEPass()(program.graph_module)  # each layer turns the same mask into numbers
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
    except Exception as error:  # ExecuTorch's exporter has no exception of its own
        logging.getLogger(__name__).debug("lowering failed", exc_info=True)
        raise ExportError(
            f"the model cannot be lowered for ExecuTorch: {type(error).__name__}: {error}",
            "report the model and versions, or export with --runtime onnx",
        ) from error
    delegates = portable.pop("executorch_call_delegate", 0)
    return LoweredGraph(bytes(data), portable, delegates, time.perf_counter() - started)


def check_products(portable: Mapping[str, int]) -> None:
    """Insist that no matrix product is left to ExecuTorch's own kernels.

    Raises:
        ExportError: one is.
    """
    slow = sorted(name for name in portable if name.split(".")[-2:][0] in SLOW)
    if slow:
        raise ExportError(
            f"ExecuTorch would run {', '.join(slow)} on slow portable kernels", "report the model and versions"
        )


def _operators(module: fx.GraphModule) -> dict[str, int]:
    """Count the operators of a lowered graph, in the bodies of its scans too."""
    counts: dict[str, int] = {}
    for node in module.graph.nodes:
        if node.op == "call_function":
            name = str(getattr(node.target, "__name__", node.target))
            counts[name] = counts.get(name, 0) + 1
        elif node.op == "get_attr" and isinstance(body := getattr(module, str(node.target), None), fx.GraphModule):
            for name, count in _operators(body).items():
                counts[name] = counts.get(name, 0) + count
    return counts
