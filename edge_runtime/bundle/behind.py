"""Training graphs that begin behind a split: ``behind.json``, for devices that look up what the front gives.

Each is the training graph of a top level without the layers before the split: what crosses the cut is an input. The
manifest lists ``behind.json`` and the graphs as files, so their hashes are checked; it does not describe them, so a
Covey that does not know them trains with the graphs of the whole model, to the same gradients.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec

from edge_runtime.bundle.levels import kind_of, trained_layers
from edge_runtime.bundle.manifest import Graph
from edge_runtime.bundle.manifest_check import check_training_graphs
from edge_runtime.bundle.side_file import NewerFile, SideFile
from edge_runtime.errors import BundleError
from edge_runtime.values import Strict

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from pathlib import Path

    from edge_runtime.bundle.levels import Level
    from edge_runtime.bundle.manifest import GraphOutput, Manifest, Runtime

BEHIND_FILE = "behind.json"
BEHIND_VERSION = 1
_MOST_GRAPHS = 4096
_AXES = 3
"""Of a hidden state: rows, tokens, width."""
_AGAIN = "export the bundle again with: covey export"


class Behind(Strict, frozen=True):
    """The content of ``behind.json``.

    Attributes:
        format_version: BEHIND_VERSION.
        graphs: the graphs, of kind ``train``, each with its level and split. Of role ``boundary`` is the hidden state
            that the front of that split gives.
    """

    format_version: int
    graphs: Annotated[list[Graph], msgspec.Meta(max_length=_MOST_GRAPHS)]


_BEHIND = SideFile(BEHIND_FILE, BEHIND_VERSION, _AGAIN)


def encode_behind(behind: Behind) -> bytes:
    """Return the bytes of ``behind.json``."""
    return _BEHIND.encode(behind)


def hidden_states(
    graphs: Iterable[Graph], splits: Collection[int], runtime: Runtime = "onnxruntime"
) -> dict[int, GraphOutput]:
    """Return, by split, the output of its front graph that is a vector for each token.

    Splits at which more than one such tensor crosses the cut are left out.
    """
    found: dict[int, GraphOutput] = {}
    for graph in graphs:
        split = graph.split
        if graph.kind == "front" and graph.runtime == runtime and split is not None and split in splits:
            states = [
                output
                for output in graph.outputs
                if output.dtype == "float32" and output.shape[:2] == ["batch", "tokens"] and len(output.shape) == _AXES
            ]
            if len(states) == 1:
                found[split] = states[0]
    return found


def find_behind(folder: Path, manifest: Manifest, split: int, runtime: Runtime = "onnxruntime") -> dict[Level, Graph]:
    """Return the training graphs that begin behind a split, by level; empty: the bundle has none for the runtime.

    Args:
        folder: the bundle's folder.
        manifest: its manifest.
        split: one of its splits.
        runtime: what would run the graphs.

    Raises:
        BundleError: ``behind.json`` is listed, but missing or not valid.
        StorageError: descriptors or memory are short.
    """
    listed = {entry.path for entry in manifest.files}
    if BEHIND_FILE not in listed or runtime != "onnxruntime":
        return {}
    behind = _BEHIND.read(folder, Behind)
    if isinstance(behind, NewerFile):
        return {}
    for graph in behind.graphs:
        _check(graph, manifest, listed)
    check_training_graphs(manifest, behind.graphs)
    return {graph.level: graph for graph in behind.graphs if graph.split == split and graph.level is not None}


def _check(graph: Graph, manifest: Manifest, listed: set[str]) -> None:
    """Check what the types cannot say, and the check of all training graphs does not know."""
    if graph.file not in listed:
        raise BundleError(f"{BEHIND_FILE} names {graph.file}, which the manifest does not list", _AGAIN)
    level, split = graph.level, graph.split
    if graph.kind != "train" or graph.runtime != "onnxruntime" or level is None or kind_of(level) != "top":
        raise BundleError(f"{BEHIND_FILE}: {graph.file} is no training graph of a top level", _AGAIN)
    if split not in manifest.splits or split + trained_layers(level) > manifest.model.layers:
        raise BundleError(f"{BEHIND_FILE}: {graph.file} does not train behind split {split}", _AGAIN)
    hidden = hidden_states(manifest.graphs, [split]).get(split)
    taken = [(tensor.source, tensor.dtype, tensor.shape) for tensor in graph.inputs if tensor.role == "boundary"]
    if hidden is None or taken != [(hidden.name, hidden.dtype, hidden.shape)]:
        raise BundleError(f"{BEHIND_FILE}: {graph.file} does not take what the front of split {split} gives", _AGAIN)
    if any(tensor.slot is not None and tensor.slot < split for tensor in graph.inputs):
        raise BundleError(f"{BEHIND_FILE}: {graph.file} reads a layer of the front", _AGAIN)
