"""The largest batch that a runtime has planned its memory for: Graph.bounds of the manifest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_runtime.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edge_runtime.bundle.manifest import Manifest, Runtime

_WORDS = {"batch": "rows", "tokens": "tokens", "chunks": "chunks of positions", "chunk": "positions in a chunk"}
_FEWER_ROWS = "lower batch_size (with [stld]: micro_batch_size) in the job to {most}, or export with --max-batch {size}"
_SHORTER_ROWS = "cut rows to {most} tokens, or export with --max-tokens {size}"
_FEWER_POSITIONS = "lower batch_size in the job, or export with a larger --max-batch or --max-tokens"
_HINTS = {"batch": _FEWER_ROWS, "tokens": _SHORTER_ROWS, "chunks": _FEWER_POSITIONS, "chunk": _FEWER_POSITIONS}


def check_bounds(sizes: Mapping[str, int], bounds: Mapping[str, int]) -> None:
    """Check that a batch is not larger than what a graph's memory was planned for.

    Args:
        sizes: the batch's named sizes: ``batch`` (rows), ``tokens``, ``chunks``, ``chunk``.
        bounds: the graph's bounds; a size without one may be any.

    Raises:
        TrainingError: it is; with the size and the bound.
    """
    for name, size in sizes.items():
        most = bounds.get(name, size)
        if size > most:
            raise TrainingError(
                f"a batch has {size} {_WORDS[name]}; the bundle's graphs for ExecuTorch take up to {most}",
                _HINTS[name].format(most=most, size=size),
            )


def largest_batch(manifest: Manifest, runtime: Runtime) -> int | None:
    """Return the most rows of a batch that every graph for a runtime takes; None: any number."""
    found = [graph.bounds["batch"] for graph in manifest.graphs if graph.runtime == runtime and "batch" in graph.bounds]
    return min(found, default=None)


def check_rows(manifest: Manifest, runtime: Runtime, rows: int) -> None:
    """Check a plan's batches before anything is loaded for them.

    Raises:
        TrainingError: the runtime's graphs take fewer rows; see check_bounds.
    """
    most = largest_batch(manifest, runtime)
    check_bounds({"batch": rows}, {} if most is None else {"batch": most})
