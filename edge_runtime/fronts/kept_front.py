"""A front block that is frozen: it is run once for each row, alone and without padding, and then looked up.

What it gives for a row depends on the row's tokens only: not on the batch, on padding, or on whether it was kept. So
scalars are the same bits with the file of activations, without it, and with one that was lost halfway.

``fill`` runs it for all rows of a round that are missing, before the first step, and then lets go of the graph: a round
takes the memory of the front for one row or that of what lies behind it, whichever is more. Where the rows of a round
do not fit into the file, the front stays loaded, and a round takes both.
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
from edge_runtime.fronts.kept_frame import believed_frame, has_rows, keep_frame
from edge_runtime.host.heap import give_back

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from edge_runtime.bundle.manifest import Task
    from edge_runtime.data.rows import Rows
    from edge_runtime.engines.bundle_engine import BundleFront
    from edge_runtime.fronts.frame import Frame
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
        start: names the start of this machine, for example by its kernel's boot ID; what was kept since then is not
            compared again. None: not known, every process compares.
    """

    def __init__(
        self,
        block: BundleFront,
        front: FloatVector,
        task: Task,
        rows: FrontRows | None = None,
        precision: Precision = "float32",
        start: str | None = None,
    ) -> None:
        self._block, self._front, self._task = block, front, task
        self._rows, self._is_half, self._start = rows, precision == "float16", start
        self._counts = [0, 0, 0]
        self._filled: set[bytes] = set()
        self._tensors = [output for output in block.boundary_outputs if is_row_tensor(output)]
        self._widths = [int(np.prod(output.shape[2:])) for output in self._tensors]  # type: ignore[arg-type]
        self._row_width = sum(self._widths)
        self._frame = None if rows is None else believed_frame(rows, start)
        self._is_verified = self._frame is not None
        if self._frame is None:
            self._frame = self._learned()

    def _learned(self) -> Frame | None:
        """Return the frame, from runs of the front; where nothing in the file needs to be compared, keep it there."""
        task, rows = self._task, self._rows
        frame = learn_frame(self._block.boundary_outputs, self._outputs, task.max_tokens, task.pad_token_id)
        if frame is None:
            _LOG.warning("what crosses the cut of this bundle cannot be kept: the front is run in every step")
        elif rows is not None and not has_rows(rows):  # what this process adds need not be compared
            self._is_verified = True
            keep_frame(rows, frame, self._start)
        return frame

    @property
    def counts(self) -> FrontCounts:
        """What was looked up and run so far."""
        return FrontCounts(*self._counts)

    @property
    def keeps_rows(self) -> bool:
        """Whether the front is run on rows one by one, to be kept; otherwise it is run on whole batches."""
        return self._frame is not None

    def fill(
        self,
        rows: Rows,
        indices: Iterable[int],
        goes_on: Callable[[], bool],
        make_room: Callable[[], None] = lambda: None,
    ) -> bool:
        """Run the front for those of a round's rows that are missing, one by one, and let go of its graph.

        In the counts, such a row is a miss where it is first looked up. Where nothing can be kept, or not all of these
        rows, the front stays loaded: the steps run it.

        Args:
            rows: the device's rows.
            indices: which of them the round uses, each once.
            goes_on: asked before each run; the round is abandoned where it says no.
            make_room: called before the first run: what it lets go of need not be in memory beside the front.

        Returns:
            Whether the round goes on.
        """
        self._filled.clear()
        if self._frame is None or self._rows is None:
            return True
        missing = self._missing(self._rows, rows, indices)
        if missing:
            make_room()
        for digest, ids in missing.items():
            if self._rows.is_full:
                return True
            if not goes_on():
                return False
            if not self._keep(digest, ids, self._computed(ids)):
                return True
            self._filled.add(digest)
        self.close_front()
        return True

    def _missing(self, kept: FrontRows, rows: Rows, indices: Iterable[int]) -> dict[bytes, Tensor]:
        """Return the tokens of the rows that are not in the file, int64, (tokens,), by their names there."""
        found: dict[bytes, Tensor] = {}
        for index in indices:
            batch = rows.batch([index])
            ids = np.ascontiguousarray(batch.input_ids[0, : int(batch.attention_mask.sum())])
            digest = _digest(ids)
            if not self._is_verified:
                self._found(digest, ids)
            if not kept.has(digest):
                found[digest] = ids
        return found

    def close_front(self) -> None:
        """Let go of the front's graph, and give its memory back to the system: the next run loads it again."""
        if self._block.close_front():
            give_back()

    def arrays(self, batch: Batch, *, hidden_states_only: bool = False) -> Mapping[str, Tensor]:
        """Return what crosses the cut, by name, from the rows that are kept and from runs of the front.

        Args:
            batch: the rows.
            hidden_states_only: whether what depends on lengths alone may be left out.

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
        arrays: dict[str, Tensor] = {} if hidden_states_only else self._frame.tensors(lengths, tokens)
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
        digest = _digest(ids)
        kept = self._found(digest, ids)
        if kept is None:
            self._counts[1] += 1
            computed = self._computed(ids)
            self._keep(digest, ids, computed)
            return computed
        self._counts[1 if digest in self._filled else 0] += 1
        self._filled.discard(digest)
        return kept

    def _found(self, digest: bytes, ids: Tensor) -> list[Tensor] | None:
        """Return a row's activations from the file, the first of them only if the front gives them here too."""
        kept = None if self._rows is None else self._rows.find(digest)
        if kept is None or not (self._is_verified or self._is_as_computed(ids, *kept)):
            return None
        return self._unpacked(*kept)

    def _keep(self, digest: bytes, ids: Tensor, computed: list[Tensor]) -> bool:
        """Keep a row's activations; return whether there is room for them."""
        if self._rows is None:
            return False
        precision = _HALF if computed[0].dtype == np.float16 else _FULL
        return self._rows.add(digest, len(ids), precision, b"".join(values.tobytes() for values in computed))

    def _is_as_computed(self, ids: Tensor, row: StoredRow, data: memoryview) -> bool:
        """Compare the first row that is found with a new run: another machine or library may have other last bits."""
        self._is_verified = True
        assert self._rows is not None  # noqa: S101 the row is from there
        assert self._frame is not None  # noqa: S101 without it no row is looked up
        is_same = b"".join(values.tobytes() for values in self._computed(ids)) == data
        if not is_same:
            _LOG.info("kept front activations (%d tokens) are not what the front gives here: kept anew", row.tokens)
            self._rows.clear()
        keep_frame(self._rows, self._frame, self._start)
        return is_same

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
        self._counts[2] += 1
        return self._outputs(batch)

    def _outputs(self, batch: Batch) -> Mapping[str, Tensor]:
        for part in self._block.front_reads(batch):
            np.copyto(self._block.front_workspace[part], self._front[part])
        return self._block.front_arrays(batch)


def _digest(ids: Tensor) -> bytes:
    return hashlib.sha256(ids.astype("<i8", copy=False).tobytes()).digest()
