"""What simulated devices learn: the protocol of a task, and a bundle's model on real rows. bowl.py has another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from edge_runtime.data.examples import DataConfig
from edge_runtime.data.rows import load_rows, picked
from edge_runtime.engines.choose import Engines
from edge_runtime.errors import DataError
from server.evaluation import Evaluation, evaluate
from server.simulation.in_process import SharedEngines

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np

    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.bundle.manifest import Manifest
    from edge_runtime.data.rows import EncodedCompletions, EncodedRows, Rows
    from edge_runtime.engines.engine import Engine, TrainingEngine
    from edge_runtime.values import FloatVector

HELD_OUT = 5
"""One of this many rows is held out."""
LEAST_ROWS = 16
"""Rows that a device has at least; where the file has too few for all devices, they share some."""


class SimulatedTask(Protocol):
    """A task that simulated devices learn; it is also a Start (storage/adapters.py)."""

    @property
    def manifest(self) -> Manifest:
        """The manifest of its bundle; a made-up one lists no files."""

    @property
    def sha256(self) -> str:
        """The bundle's name: hash of its manifest."""

    @property
    def initial_sha256(self) -> str:
        """See adapters.Start."""

    def initial_adapter(self) -> FloatVector:
        """See adapters.Start."""

    def engine(self, device: int, split: int) -> Engine[Any]:
        """Return the engine of a device's forward-only steps."""

    def training_engine(self, device: int) -> TrainingEngine:
        """Return the engine of a device's backpropagation."""

    def rows(self, device: int) -> Rows:
        """Return a device's private rows."""

    def evaluate(self, theta: FloatVector) -> Evaluation:
        """Return held-out loss and accuracy."""


class Part:
    """Some of a file's rows.

    Args:
        rows: all rows of the file.
        indices: indices of the rows in this part.
    """

    def __init__(self, rows: EncodedRows | EncodedCompletions, indices: Sequence[int]) -> None:
        self._rows, self._indices = rows, indices

    def __len__(self) -> int:
        return len(self._indices)

    def batch(self, indices: Sequence[int]) -> Any:  # noqa: ANN401 of the task's kind
        """See rows.Rows."""
        return self._rows.batch([self._indices[index] for index in indices])


class BundleTask:
    """A bundle's model on ONNX Runtime, with a file's rows distributed over the devices, which share the engines.

    Args:
        bundle: a checked bundle.
        data: rows of its task; one of HELD_OUT rows is held out.
        devices: number of devices.
        rng: source of the distribution of the rows.

    Attributes:
        bundle: the bundle.
        held_out: the rows that no device has.

    Raises:
        DataError: the rows are wrong, or too few.
    """

    def __init__(self, bundle: Bundle, data: Path, devices: int, rng: np.random.Generator) -> None:
        self.manifest, self.sha256, self.initial_sha256 = bundle.manifest, bundle.sha256, bundle.initial_sha256
        self.bundle = bundle
        self._rows = load_rows(bundle, DataConfig(path=str(data)))
        order = [int(index) for index in rng.permutation(len(self._rows))]
        held_out, private = order[::HELD_OUT], [index for i, index in enumerate(order) if i % HELD_OUT]
        if len(private) < LEAST_ROWS:
            raise DataError(f"{data} has {len(order)} rows: too few", f"give {2 * LEAST_ROWS} or more")
        size = max(LEAST_ROWS, len(private) // devices)
        self._parts = [
            [private[(device * size + index) % len(private)] for index in range(size)] for device in range(devices)
        ]
        self.held_out = picked(self._rows, held_out)
        engines = Engines(threads=1)
        self._engines, self._predictor = SharedEngines(engines), engines.make_predictor(bundle)

    def initial_adapter(self) -> FloatVector:
        """See adapters.Start."""
        return self.bundle.initial_adapter()

    def engine(self, device: int, split: int) -> Engine[Any]:  # noqa: ARG002 all devices have the same
        """See SimulatedTask."""
        return self._engines.make_engine(self.bundle, split)

    def training_engine(self, device: int) -> TrainingEngine:  # noqa: ARG002 all devices have the same
        """See SimulatedTask."""
        return self._engines.make_training_engine(self.bundle)

    def rows(self, device: int) -> Rows:
        """See SimulatedTask."""
        return Part(self._rows, self._parts[device])

    def row_numbers(self, device: int) -> Sequence[int]:
        """Return which rows of the file a device has, from 0."""
        return self._parts[device]

    def evaluate(self, theta: FloatVector) -> Evaluation:
        """See SimulatedTask."""
        return evaluate(self._predictor, theta, self.held_out, len(self.manifest.task.labels))
