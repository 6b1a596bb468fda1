"""Checks what a manifest's types cannot say: paths, the layout, and that its graphs fit the layout and each other.

A manifest comes over the network, so every check takes time that is linear in the manifest's size.
"""

from __future__ import annotations

import collections
import itertools
import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from edge_runtime.bundle.layers import LAYER_FIELD, source_of
from edge_runtime.bundle.layout import check_layout, total_size
from edge_runtime.bundle.levels import Level, ascending, kind_of, run_layers, trained_layers
from edge_runtime.bundle.manifest import CAUSAL_LM, MANIFEST_FILE, PLAIN_VERSION
from edge_runtime.errors import BundleError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from edge_runtime.bundle.manifest import Graph, GraphInput, GraphOutput, Manifest

_PATH = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")
_LONGEST_PATH = 255
_AGAIN = "export the bundle again with: covey export"


def check_manifest(manifest: Manifest) -> None:
    """Check a manifest whose types are right.

    Raises:
        BundleError: an unsafe or missing path, a broken layout, a graph that is missing, there twice, or does not fit.
    """
    if manifest.base is not None and manifest.format_version <= PLAIN_VERSION:
        raise BundleError(f"a manifest of version {manifest.format_version} has no quantised base", _AGAIN)
    _check_paths(manifest)
    _check_layout(manifest)
    _check_levels(manifest)
    _check_presence(manifest)
    _check_inputs(manifest)
    _check_training_graphs(manifest)
    if manifest.task.kind != CAUSAL_LM and len(manifest.task.labels) < 2:
        raise BundleError("the task has fewer than two labels", "export with --labels A,B")


def _check_paths(manifest: Manifest) -> None:
    listed = {entry.path for entry in manifest.files}
    for path in listed:
        if not _PATH.fullmatch(path) or path == MANIFEST_FILE or len(path) > _LONGEST_PATH:
            raise BundleError(f"the manifest lists an unsafe path: {path!r}", "do not use this bundle")
        for folder in PurePosixPath(path).parents:
            if folder.as_posix() in listed:
                raise BundleError(f"the manifest lists {folder} as a file and as a folder", "do not use this bundle")
    if len(listed) != len(manifest.files):
        raise BundleError("the manifest lists a file twice", _AGAIN)
    named = [manifest.weights_file, manifest.adapter_file, manifest.tokenizer_file, manifest.golden.file]
    for path in named + [graph.file for graph in manifest.graphs]:
        if path not in listed:
            raise BundleError(f"the manifest lists no file {path}", _AGAIN)


def _check_layout(manifest: Manifest) -> None:
    check_layout(manifest.parameters)
    needed, held = 4 * total_size(manifest.parameters), manifest.file(manifest.adapter_file).size_bytes
    if needed > held:
        raise BundleError(
            f"the layout needs {needed} bytes, its initial adapter {manifest.adapter_file} has {held}", _AGAIN
        )


def _check_presence(manifest: Manifest) -> None:
    """Check that the graphs of every runtime and split are there, each once."""
    if not manifest.splits:
        raise BundleError("the manifest lists no split", "export with --split")
    count = collections.Counter((graph.runtime, graph.name) for graph in manifest.graphs)
    for (runtime, name), times in count.items():
        if times > 1:
            raise BundleError(f"the manifest lists the graph {name} for {runtime} {times} times", _AGAIN)
    if not manifest.runtimes:
        raise BundleError("the bundle has no predict graph", _AGAIN)
    for runtime, split, kind in itertools.product(manifest.runtimes, manifest.splits, ("front", "back")):
        if (runtime, f"{kind} {split}") not in count:
            raise BundleError(
                f"the bundle has no {kind} graph at split {split} for {runtime}; its splits are {manifest.splits}",
                "export the bundle again with --split",
            )


def _check_levels(manifest: Manifest) -> None:
    levels = collections.defaultdict[str, list[Level]](list, onnxruntime=[])
    for graph in manifest.graphs:
        if graph.kind == "train" and graph.level is not None:
            levels[graph.runtime].append(graph.level)
    if any(ascending(found) != manifest.levels or len(found) != len(set(found)) for found in levels.values()):
        raise BundleError("the manifest's levels are not those of its training graphs", _AGAIN)
    top = [level for level in manifest.levels if kind_of(level) == "top"]
    if top and manifest.format_version <= PLAIN_VERSION:
        raise BundleError(f"a manifest of version {manifest.format_version} has no level {top[0]}", _AGAIN)


def _check_inputs(manifest: Manifest) -> None:
    trainable = {parameter.name for parameter in manifest.parameters}
    for graph in manifest.graphs:
        if graph.kind == "train":
            continue
        for tensor in graph.inputs:
            if tensor.role == "trainable" and tensor.source not in trainable:
                raise BundleError(f"{graph.file}: {tensor.source} is not in the layout", _AGAIN)
            if isinstance(tensor.rows, list) and not _are_rows(tensor.rows, tensor.shape):
                raise BundleError(f"{graph.file}: {tensor.source} has no rows {tensor.rows[:8]}", _AGAIN)


def _are_rows(rows: list[int], shape: Sequence[int | str]) -> bool:
    return bool(shape) and isinstance(shape[0], int) and all(0 <= row < shape[0] for row in rows)


def _check_training_graphs(manifest: Manifest) -> None:
    check_training_graphs(manifest, [graph for graph in manifest.graphs if graph.kind == "train"])


def check_training_graphs(manifest: Manifest, graphs: Iterable[Graph]) -> None:
    """Check that each training graph fits the layout, whichever layers are bound to its slots.

    Raises:
        BundleError: a graph's level, slots, inputs or gradients do not fit.
    """
    shapes = {parameter.name: parameter.shape for parameter in manifest.parameters}
    layers = manifest.model.layers
    found: set[tuple[str, tuple[int | str, ...]]] = set()  # sources whose tensors of every layer are in the layout
    for graph in graphs:
        _check_slots(graph, layers)
        for tensor in _trained(graph):
            key = (tensor.source or "", tuple(tensor.shape))
            if tensor.slot is None:
                _check_in_layout(graph, key[0], tensor.shape, shapes)
            elif key not in found:
                for layer in range(layers):
                    name = source_of(tensor, {tensor.slot: layer})
                    _check_in_layout(graph, name, tensor.shape, shapes)
                found.add(key)
        _check_gradients(graph, layers)


def _trained(graph: Graph) -> list[GraphInput | GraphOutput]:
    """Return a training graph's trainable inputs and its gradients."""
    inputs: list[GraphInput | GraphOutput] = [tensor for tensor in graph.inputs if tensor.role == "trainable"]
    return inputs + [output for output in graph.outputs if output.source is not None]


def _check_in_layout(
    graph: Graph, name: str, shape: Sequence[int | str], shapes: Mapping[str, Sequence[int | str]]
) -> None:
    if shapes.get(name) != shape:
        raise BundleError(f"{graph.file}: {name} {shape} is not in the layout", _AGAIN)


def _check_slots(graph: Graph, layers: int) -> None:
    """Check the level of a training graph, and that every tensor with a slot has a place in it."""
    level = graph.level
    if level is None or not 1 <= trained_layers(level) <= layers:
        raise BundleError(f"{graph.file}: level {level} of a model with {layers} layers", _AGAIN)
    slots = run_layers(level, layers)
    gradients = [output for output in graph.outputs if output.source is not None]
    bound: list[GraphInput | GraphOutput] = [*graph.inputs, *gradients]
    for tensor in bound:
        if tensor.slot is not None and not (tensor.slot < slots and LAYER_FIELD in (tensor.source or "")):
            raise BundleError(f"{graph.file}: {tensor.name} has no place in slot {tensor.slot}", _AGAIN)


def _check_gradients(graph: Graph, layers: int) -> None:
    """Check that a training graph's first output is the loss, and that each tensor that it trains has one gradient."""
    level = graph.level or layers
    below = run_layers(level, layers) - trained_layers(level)
    trained = {
        (tensor.source, tensor.slot)
        for tensor in graph.inputs
        if tensor.role == "trainable" and (tensor.slot is None or tensor.slot >= below)
    }
    gradients = [output for output in graph.outputs if output.source is not None]
    if trained != {(output.source, output.slot) for output in gradients}:
        raise BundleError(f"{graph.file}: not one gradient for each tensor that it trains", _AGAIN)
    if not graph.outputs or graph.outputs[0].name != "loss":
        raise BundleError(f"{graph.file}: its first output is not the loss", _AGAIN)
