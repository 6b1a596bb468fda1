"""Which parts of a block's parameters a run reads: of an embedding only the rows of the batch's tokens.

A step perturbs out of place and need not write what the run does not read: in full mode this skips most of an
embedding in every perturbation. The exporter finds which tensors a graph reads by rows (manifest.GraphInput).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edge_runtime.bundle.layout import Parameter
    from edge_runtime.bundle.manifest import GraphInput, Rows
    from edge_runtime.data.batch import Batch


def rows_read(inputs: Sequence[GraphInput]) -> dict[str, Rows]:
    """Return the rows that a graph reads of each trainable tensor which it reads by rows: see manifest.GraphInput."""
    return {i.source: i.rows for i in inputs if i.role == "trainable" and i.rows is not None}


def read_slices(parameters: Sequence[Parameter], rows: Mapping[str, Rows], batch: Batch) -> list[slice]:
    """Return the slices of a block that a run on this batch reads: ascending, disjoint, none empty.

    Args:
        parameters: the block's tensors; the first one's offset is where the block begins.
        rows: the result of rows_read for the block's graph.
        batch: the run's batch.
    """
    if not parameters:
        return []
    start = parameters[0].offset
    bounds: list[tuple[int, int]] = []
    for parameter in parameters:
        first = parameter.offset - start
        if parameter.name not in rows:
            bounds.append((first, first + parameter.size))
            continue
        wanted = rows[parameter.name]
        indexes = np.unique(batch.input_ids) if isinstance(wanted, str) else sorted(set(wanted))
        width = parameter.size // parameter.shape[0]
        bounds += [(first + int(row) * width, first + (int(row) + 1) * width) for row in indexes]
    return _joined(bounds)


def _joined(bounds: list[tuple[int, int]]) -> list[slice]:
    joined: list[slice] = []
    for low, high in bounds:
        if joined and joined[-1].stop == low:
            joined[-1] = slice(joined[-1].start, high)
        else:
            joined.append(slice(low, high))
    return joined
