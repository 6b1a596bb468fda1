"""A bundle that a device is ready to train with: its encoded rows, and the engine in use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edge_runtime.data.rows import load_rows
from edge_runtime.profiling.rates import replay_parameters_per_s

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.data.examples import DataConfig
    from edge_runtime.engines.engine import Engine, MakesEngines, TrainingEngine


class LoadedBundle:
    """A checked bundle with the device's rows. Engines are made lazily, so that an idle device uses little memory.

    At most one engine is kept, either for forward passes or for backpropagation.

    Args:
        bundle: a checked bundle.
        data: the private rows.
        engines: makes the bundle's engines.

    Raises:
        DataError: see load_rows.
    """

    def __init__(self, bundle: Bundle, data: DataConfig, engines: MakesEngines) -> None:
        self.bundle, self.engines = bundle, engines
        self._engine: tuple[int, Engine[Any]] | None = None
        self._training_engine: TrainingEngine | None = None
        self._replay_rate: float | None = None
        self.rows = load_rows(bundle, data)

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
