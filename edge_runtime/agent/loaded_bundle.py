"""A bundle that a device is ready to train with: its encoded rows, and the engine in use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edge_runtime.data.rows import load_rows
from edge_runtime.profiling.rates import replay_parameters_per_s

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.data.config import DataConfig
    from edge_runtime.data.rows import EncodedCompletions, EncodedRows
    from edge_runtime.engines.engine import Engine, MakesEngines, TrainingEngine


class LoadedBundle:
    """A checked bundle with the device's rows. Rows and engines are made when they are needed.

    So an idle device uses little memory, and a device without usable rows still gets adapters. At most one engine is
    kept, either for forward passes or for backpropagation.

    Args:
        bundle: a checked bundle.
        data: the private rows.
        engines: makes the bundle's engines.
    """

    def __init__(self, bundle: Bundle, data: DataConfig, engines: MakesEngines) -> None:
        self.bundle, self.engines, self._data = bundle, engines, data
        self._rows: EncodedRows | EncodedCompletions | None = None
        self._engine: tuple[int, Engine[Any]] | None = None
        self._training_engine: TrainingEngine | None = None
        self._replay_rate: float | None = None

    @property
    def rows(self) -> EncodedRows | EncodedCompletions:
        """The device's rows, read when they are first asked for.

        Raises:
            DataError: see load_rows; the rows are read again when they are asked for again.
        """
        if self._rows is None:
            self._rows = load_rows(self.bundle, self._data)
        return self._rows

    def forget_rows(self) -> None:
        """Read the rows again when they are next asked for: their file has changed."""
        self._rows = None

    @property
    def known_rows(self) -> int | None:
        """Number of rows; None: they have not been read."""
        return None if self._rows is None else len(self._rows)

    @property
    def copies(self) -> bool:
        """Whether a round trains a copy of the adapter. In full mode memory would not hold the model twice."""
        return self.bundle.manifest.train == "lora"

    def engine(self, split: int) -> Engine[Any]:
        """Return front and back at a split."""
        if self._engine is None or self._engine[0] != split:
            self._engine = self._training_engine = None
            self._engine = (split, self.engines.make_engine(self.bundle, split))
        return self._engine[1]

    def training_engine(self) -> TrainingEngine:
        """Return the engine of the training graphs."""
        if self._training_engine is None:
            self._engine = None
            self._training_engine = self.engines.make_training_engine(self.bundle)
        return self._training_engine

    def replay_parameters_per_s(self, clock: Callable[[], float]) -> float:
        """Return how many parameters × directions this machine replays per second; measured once, in milliseconds."""
        if self._replay_rate is None:
            self._replay_rate = replay_parameters_per_s(clock)
        return self._replay_rate
