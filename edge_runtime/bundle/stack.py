"""The stack graphs of a bundle: ``stack.json``, which describes back blocks that take many adapters in one call.

A stack graph takes one batch, what crosses the split, and P vectors of the back block's trained parameters; it gives P
losses. The manifest lists ``stack.json`` and the graphs as files, so their hashes are checked; it does not describe
them, so a Covey that does not know them uses the bundle as before, one adapter after the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import msgspec

from edge_runtime.bundle.layout import front_size, total_size
from edge_runtime.bundle.levels import MOST_LAYERS
from edge_runtime.bundle.manifest import Activations, Graph
from edge_runtime.bundle.side_file import NewerFile, SideFile
from edge_runtime.errors import BundleError
from edge_runtime.values import Strict

if TYPE_CHECKING:
    from pathlib import Path

    from edge_runtime.bundle.manifest import Manifest, Runtime

STACK_FILE = "stack.json"
STACK_VERSION = 1
ADAPTERS, LOSSES, STACK = "adapters", "losses", "stack"
"""The graph's input with the vectors, (stack, back size), its output, (stack,), and the name of their first size."""
MOST_ADAPTERS = 256
"""The most adapters of a call."""
_FLOAT32_BYTES = 4
_MARGIN = 1.4
"""On the traced estimate of activations, as in memory_need.py."""
_SHARE_OF_FREE = 0.5
"""Share of the free memory that a call may take: the front block and the rest of the machine need some, too."""
_AGAIN = "export the bundle again with: covey export --stack"


class StackGraph(Strict, frozen=True):
    """The back block of one split, for many adapters.

    Attributes:
        graph: the graph, of kind ``back``, on ONNX Runtime. Its only input of role ``trainable`` is ``adapters``, its
            only output ``losses``.
        activations: memory of its values with one adapter and one row of the longest length, and what each further row
            of a further adapter adds.
    """

    graph: Graph
    activations: Activations


class Stacks(Strict, frozen=True):
    """The content of ``stack.json``: a graph for each split that has one."""

    format_version: int
    graphs: Annotated[list[StackGraph], msgspec.Meta(max_length=MOST_LAYERS)]


@dataclass(frozen=True)
class NoStack:
    """Why a device runs one adapter after the other; the reason is a clause: ``the bundle has no …``."""

    reason: str


_STACKS = SideFile(STACK_FILE, STACK_VERSION, _AGAIN)


def encode_stacks(stacks: Stacks) -> bytes:
    """Return the bytes of ``stack.json``."""
    return _STACKS.encode(stacks)


def find_stack(folder: Path, manifest: Manifest, split: int, runtime: Runtime = "onnxruntime") -> StackGraph | NoStack:
    """Return the stack graph of a split, or why there is none.

    Args:
        folder: the bundle's folder.
        manifest: its manifest.
        split: one of its splits.
        runtime: what would run the graph.

    Raises:
        BundleError: ``stack.json`` is listed, but missing or not valid.
        StorageError: descriptors or memory are short.
    """
    listed = {entry.path for entry in manifest.files}
    if STACK_FILE not in listed:
        return NoStack("the bundle has no stack graphs (covey export --stack writes them)")
    if runtime != "onnxruntime":
        return NoStack(f"the bundle has stack graphs for onnxruntime only, and the engine is {runtime}")
    stacks = _STACKS.read(folder, Stacks)
    if isinstance(stacks, NewerFile):
        return NoStack(
            f"the bundle's stack graphs have format version {stacks.version}, this Covey reads {STACK_VERSION}"
        )
    found = [stack for stack in stacks.graphs if stack.graph.split == split]
    if not found:
        return NoStack(f"the bundle has no stack graph at split {split}")
    _check(found[0].graph, listed, back_size(manifest, split))
    return found[0]


def back_size(manifest: Manifest, split: int) -> int:
    """Return the number of trained parameters behind a split."""
    return total_size(manifest.parameters) - front_size(manifest.parameters, split)


def _check(graph: Graph, listed: set[str], size: int) -> None:
    """Check what the types cannot say."""
    if graph.file not in listed:
        raise BundleError(f"{STACK_FILE} names {graph.file}, which the manifest does not list", _AGAIN)
    trained = [(tensor.name, tensor.dtype, tensor.shape) for tensor in graph.inputs if tensor.role == "trainable"]
    outputs = [output.name for output in graph.outputs]
    if graph.runtime != "onnxruntime" or trained != [(ADAPTERS, "float32", [STACK, size])] or outputs != [LOSSES]:
        raise BundleError(f"{STACK_FILE}: {graph.file} does not take stacked vectors of {size} parameters", _AGAIN)


def call_bytes(stack: StackGraph, adapters: int, rows: int) -> int:
    """Return the memory that a call takes beside the weights, for rows of the longest length."""
    size = next(side for tensor in stack.graph.inputs if tensor.name == ADAPTERS for side in tensor.shape[1:])
    first, further = stack.activations.first_row, stack.activations.further_row
    vectors = _FLOAT32_BYTES * adapters * int(size)
    return vectors + math.ceil(_MARGIN * (first + (adapters * rows - 1) * further))


def adapters_that_fit(stack: StackGraph, rows: int, bytes_free: int | None) -> int:
    """Return the most adapters of a call whose memory is at most half of what is free; at least 1.

    Args:
        stack: the graph.
        rows: rows of a batch.
        bytes_free: free memory; None: not known, then one adapter is run after the other.
    """
    if bytes_free is None:
        return 1
    budget, one = int(_SHARE_OF_FREE * bytes_free), call_bytes(stack, 1, rows)
    each = call_bytes(stack, 2, rows) - one
    return max(1, min(MOST_ADAPTERS, 1 + (budget - one) // max(1, each)))
