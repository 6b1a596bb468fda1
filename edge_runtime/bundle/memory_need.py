"""Memory that training a bundle takes: estimated from the manifest, in bytes for each level, row and token.

The estimate knows nothing of this machine; ``device/memory.py`` says what the machine has free.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec

from edge_runtime.bundle.levels import Level, run_layers, trained_layers
from edge_runtime.errors import BundleError, TrainingError
from edge_runtime.values import Count

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_runtime.bundle.manifest import Graph, GraphInput, Manifest, Runtime

_BYTES = {"float32": 4, "int64": 8, "bool": 1, "uint8": 1}
_ACTIVATIONS = 20
"""Stored hidden-size vectors per token and layer, for a graph whose manifest does not say what its values take."""
_TOKENS_FOR_ONE_MORE = 25
"""Attention adds one hidden-size vector per token and layer for every 25 tokens of row length (heads of 64)."""

_MARGIN = 1.4
"""On the traced estimate: a runtime runs nodes in another order and leaves gaps between values; DeBERTa needs 1.33."""


def level_need(manifest: Manifest, level: Level, runtime: Runtime = "onnxruntime") -> LevelNeed:
    """Estimate the memory of one training graph, its weights included, for rows of the longest length.

    The manifest says what the graph's values take (Graph.activations); a margin is added. Without that, a layer that is
    trained counts as 20 hidden sizes per token, and attention as more of them, as in a model whose heads together are
    as wide as its hidden state; the layers below, one of which is run at a time, count as one more.

    Raises:
        BundleError: the bundle has no such level for the runtime.
    """
    return graph_need(manifest, manifest.training_graph(level, runtime))


def graph_need(manifest: Manifest, graph: Graph) -> LevelNeed:
    """Estimate the memory of a training graph of the bundle, as ``level_need`` does."""
    level = graph.level
    assert level is not None  # noqa: S101 each training graph has one: see manifest_check
    bound = parameter_bytes(graph)
    if graph.activations is not None:
        first, further = graph.activations.first_row, graph.activations.further_row
        return LevelNeed(level, bound + math.ceil(_MARGIN * first), math.ceil(_MARGIN * further))
    tokens = manifest.task.max_tokens
    stored = hidden_size(manifest) * (_ACTIVATIONS + tokens / _TOKENS_FOR_ONE_MORE)
    kept = trained_layers(level)
    if graph.recomputes:
        stored = (stored + kept * hidden_size(manifest)) / kept
    if kept < run_layers(level, manifest.model.layers) - (graph.split or 0):
        kept += 1
    row_bytes = int(4 * tokens * kept * stored)
    return LevelNeed(level, bound + row_bytes, row_bytes)


def behind_need(manifest: Manifest, graph: Graph) -> LevelNeed:
    """Estimate the memory of a training graph that begins behind a split, beside the front of that split.

    The front stays loaded where a round's rows do not fit into the file of activations. Its weights are pages of a
    mapped file, which the system may drop, but for those that a runtime copies when it loads the graph (role
    ``constant``, of a quantised base).
    """
    need = graph_need(manifest, graph)
    front = manifest.graph("front", graph.split, graph.runtime)
    copied = sum(_tensor_bytes(tensor) for tensor in front.inputs if tensor.role == "constant")
    return msgspec.structs.replace(need, bytes_needed=need.bytes_needed + copied)


def predict_bytes(manifest: Manifest, rows: int, runtime: Runtime = "onnxruntime") -> int:
    """Estimate the memory of the whole model's graph, its weights included, for rows of the longest length.

    One layer's values are held at a time; a layer counts as where the manifest does not say what it takes.

    Raises:
        BundleError: the bundle has no such graph for the runtime.
    """
    tokens = manifest.task.max_tokens
    stored = hidden_size(manifest) * (_ACTIVATIONS + tokens / _TOKENS_FOR_ONE_MORE)
    return parameter_bytes(manifest.graph("predict", runtime=runtime)) + int(4 * rows * tokens * stored)


def parameter_bytes(graph: Graph) -> int:
    """Return the bytes of the weights, frozen or trained, that are bound to a graph."""
    bound = ("weight", "constant", "frozen", "trainable")
    return sum(_tensor_bytes(tensor) for tensor in graph.inputs if tensor.role in bound)


def _tensor_bytes(tensor: GraphInput) -> int:
    return _BYTES[tensor.dtype] * math.prod(side for side in tensor.shape if isinstance(side, int))


def bytes_for(need: LevelNeed, rows: int) -> int:
    """Return the bytes that a level needs when it runs ``rows`` rows at once."""
    return need.bytes_needed + (rows - 1) * need.bytes_a_row


def hidden_size(manifest: Manifest) -> int:
    """Return the size of a hidden state: the last side of what crosses the cut.

    Raises:
        BundleError: no output of a front graph has shape (batch, tokens, size).
    """
    sizes = [
        output.shape[-1]
        for graph in manifest.graphs
        if graph.kind == "front"
        for output in graph.outputs
        if output.dtype == "float32" and len(output.shape) == 3 and isinstance(output.shape[-1], int)
    ]
    found = [size for size in sizes if isinstance(size, int)]
    if not found:
        raise BundleError("the bundle's front graphs give no hidden states", "export the bundle again")
    return max(found)


def rows_that_fit(need: LevelNeed, bytes_free: int | None, fewest: int, most: int) -> int:
    """Return the number of rows that a level can run at once, ``fewest`` … ``most``; ``most`` if memory is unknown."""
    if bytes_free is None or need.bytes_a_row <= 0:
        return most
    return max(fewest, min(most, 1 + (bytes_free - need.bytes_needed) // need.bytes_a_row))


def levels_that_fit(needs: Sequence[LevelNeed], bytes_free: int | None, rows: int) -> list[Level]:
    """Return the levels that fit into free memory with ``rows`` rows at once; all of them if memory is unknown."""
    return [need.level for need in needs if bytes_free is None or bytes_for(need, rows) <= bytes_free]


def check_level(
    manifest: Manifest, level: Level, rows: int, bytes_free: int | None, runtime: Runtime = "onnxruntime"
) -> None:
    """Check that a level exists and fits into free memory, before anything is loaded.

    Raises:
        BundleError: the bundle has no such level for the runtime.
        TrainingError: it does not fit; with the bytes needed and free.
    """
    check_need(level_need(manifest, level, runtime), rows, bytes_free)


def check_need(need: LevelNeed, rows: int, bytes_free: int | None) -> None:
    """Check that a level fits into free memory.

    Raises:
        TrainingError: it does not fit; with the bytes needed and free.
    """
    level, needed = need.level, bytes_for(need, rows)
    if bytes_free is not None and needed > bytes_free:
        raise TrainingError(
            f"{_named(level)} and micro-batches of {rows} need {needed} bytes, {bytes_free} are free",
            "lower the level or micro_batch_size in the job's [stld], or free some memory",
        )


def _named(level: Level) -> str:
    return f"level {level}" if isinstance(level, str) else f"{level} active layers"


class LevelNeed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Memory that training at a level takes: with one row of the longest length, and for each further row."""

    level: Level
    bytes_needed: Count
    bytes_a_row: Count
