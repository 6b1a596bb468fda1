"""A front block that is frozen: it is run once for each row, alone and without padding, and then looked up.

What it gives for a row depends on the row's tokens only: not on the batch, on padding, or on whether it was kept. So
scalars are the same bits with the file of activations, without it, and with one that was lost halfway.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edge_runtime.data.batch import Batch
from edge_runtime.errors import TrainingError
from edge_runtime.fronts.frame import is_row_tensor, learn_frame

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edge_runtime.bundle.manifest import Task
    from edge_runtime.engines.bundle_engine import BundleFront
    from edge_runtime.fronts.front_folder import FrontRows
    from edge_runtime.fronts.front_key import Precision
    from edge_runtime.fronts.row_file import StoredRow
    from edge_runtime.values import FloatVector, Tensor

_LOG = logging.getLogger(__name__)
_FULL, _HALF = 0, 1
"""How a row is kept: float32, or float16."""


@dataclass(frozen=True)
class FrontCounts:
    """Rows of batches so far: ``hits`` were looked up, ``misses`` were not there. ``runs``: runs of the front block."""

    hits: int
    misses: int
    runs: int

    def since(self, before: FrontCounts) -> FrontCounts:
        """Return what has been added since ``before``."""
        return FrontCounts(self.hits - before.hits, self.misses - before.misses, self.runs - before.runs)


class KeptFront:
    """The front of a bundle at parameters that do not change.

    Args:
        block: the front; its workspace is written before each run.
        front: the front's trainable parameters, float32, (front size,); read in place.
        task: says how long rows can be, and what fills them up.
        rows: where activations are kept; None: nowhere.
        precision: float16 halves the file, and rounds every activation, whether it is kept or not.
    """

    def __init__(
        self,
        block: BundleFront,
        front: FloatVector,
        task: Task,
        rows: FrontRows | None = None,
        precision: Precision = "float32",
    ) -> None:
        self._block, self._front, self._task = block, front, task
        self._rows, self._is_half = rows, precision == "float16"
        self._counts = [0, 0, 0]
        self._is_verified = rows is None or not rows.file.rows  # what this process adds need not be compared
        self._tensors = [output for output in block.boundary_outputs if is_row_tensor(output)]
        self._widths = [int(np.prod(output.shape[2:])) for output in self._tensors]  # type: ignore[arg-type]
        self._row_width = sum(self._widths)
        self._frame = learn_frame(block.boundary_outputs, self._run, task.max_tokens, task.pad_token_id)
        if self._frame is None:
            _LOG.warning("what crosses the cut of this bundle cannot be kept: the front is run in every step")

    @property
    def counts(self) -> FrontCounts:
        """What was looked up and run so far."""
        return FrontCounts(*self._counts)

    @property
    def keeps_rows(self) -> bool:
        """Whether the front is run on rows one by one, to be kept; otherwise it is run on whole batches."""
        return self._frame is not None

    def arrays(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return what crosses the cut, by name, from the rows that are kept and from runs of the front.

        Raises:
            TrainingError: a row is longer than the bundle's rows can be.
        """
        if self._frame is None:
            self._counts[1] += batch.rows
            return self._run(batch)
        lengths = batch.attention_mask.sum(axis=1).tolist()
        rows, tokens = batch.input_ids.shape
        if tokens > self._task.max_tokens:
            raise TrainingError(
                f"a row has {tokens} tokens; the bundle's rows have up to {self._task.max_tokens}",
                "rows are cut when they are encoded: check them with covey-edge data check",
            )
        arrays: dict[str, Tensor] = self._frame.tensors(lengths, tokens)
        for output in self._tensors:
            arrays[output.name] = np.empty((rows, tokens, *output.shape[2:]), dtype=np.float32)
        for index, length in enumerate(lengths):
            ids = np.ascontiguousarray(batch.input_ids[index, :length])
            for output, values in zip(self._tensors, self._row(ids), strict=True):
                array = arrays[output.name]
                array[index, :length] = values.reshape(length, *output.shape[2:])
                array[index, length:] = 0
        return arrays

    def read_from(self, front: FloatVector) -> None:
        """Read the front's parameters, which are the same, from another array: the old one's file may go."""
        self._front = front

    def close(self) -> None:
        """Close the file of activations."""
        if self._rows is not None:
            self._rows.close()
            self._rows = None

    def _row(self, ids: Tensor) -> list[Tensor]:
        """Return a row's activations, for each tensor (tokens × width,), float32 or float16."""
        digest = hashlib.sha256(ids.astype("<i8", copy=False).tobytes()).digest()
        kept = None if self._rows is None else self._rows.find(digest)
        if kept is not None and self._rows is not None and not self._is_verified:
            kept = kept if self._is_as_computed(ids, *kept) else None
        if kept is not None:
            values = self._unpacked(*kept)
            if values is not None:
                self._counts[0] += 1
                return values
        self._counts[1] += 1
        computed = self._computed(ids)
        if self._rows is not None:
            data = b"".join(values.tobytes() for values in computed)
            precision = _HALF if computed[0].dtype == np.float16 else _FULL
            self._rows.add(digest, len(ids), precision, data)
        return computed

    def _is_as_computed(self, ids: Tensor, row: StoredRow, data: memoryview) -> bool:
        """Compare the first row that is found with a new run: another machine or library may have other last bits."""
        self._is_verified = True
        if b"".join(values.tobytes() for values in self._computed(ids)) == data:
            return True
        assert self._rows is not None  # noqa: S101 the row is from there
        _LOG.info("kept front activations (%d tokens) are not what the front gives here: kept anew", row.tokens)
        self._rows.clear()
        return False

    def _unpacked(self, row: StoredRow, data: memoryview) -> list[Tensor] | None:
        values = np.frombuffer(data, dtype=np.float16 if row.precision == _HALF else np.float32)
        if values.size != row.tokens * self._row_width:
            return None
        if len(self._widths) == 1:
            return [values]
        stops = np.cumsum([row.tokens * width for width in self._widths])
        return np.split(values, stops[:-1])

    def _computed(self, ids: Tensor) -> list[Tensor]:
        ones = np.ones((1, len(ids)), dtype=np.int64)
        arrays = self._run(Batch(ids[None], ones, np.zeros(1, dtype=np.int64)))
        values = [np.ascontiguousarray(arrays[output.name]).reshape(-1) for output in self._tensors]
        if not self._is_half:
            return values
        with np.errstate(over="ignore"):
            halves = [value.astype(np.float16) for value in values]
        # What float16 cannot hold stays float32, always: the bits must not depend on whether a row was kept.
        return halves if all(np.isfinite(half).all() for half in halves) else values

    def _run(self, batch: Batch) -> Mapping[str, Tensor]:
        for part in self._block.front_reads(batch):
            np.copyto(self._block.front_workspace[part], self._front[part])
        self._counts[2] += 1
        return self._block.front_arrays(batch)
