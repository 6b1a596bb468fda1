"""What a device has at hand for one bundle: the checked bundle, its encoded rows, its engine, its current adapter."""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING, Any

from edge_runtime.data.rows import load_rows
from edge_runtime.engines.choose import make_training_engine
from edge_runtime.profiling.rates import replay_parameters_per_s

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.bundle.manifest import Runtime
    from edge_runtime.data.examples import DataConfig
    from edge_runtime.engines.engine import Engine, TrainingEngine

    EngineMaker = Callable[[Bundle, int, int], Engine[Any]]
    TrainingEngineMaker = Callable[[Bundle, int], TrainingEngine]

_LOG = logging.getLogger(__name__)


class Workshop:
    """A bundle that is ready to train.

    The runtime and the tokenizer are loaded when they are first needed: a device that waits for work stays small.

    Args:
        bundle: a checked bundle.
        data: the private rows.
        threads: threads of one operator.
        make_engine: makes the engine of a bundle at a split, with so many threads.
        make_training_engine: makes the engine of a bundle's training graphs, with so many threads; None: on
            ``runtime``.
        runtime: whose training graphs they are.
    """

    def __init__(
        self,
        bundle: Bundle,
        data: DataConfig,
        threads: int,
        make_engine: EngineMaker,
        make_training_engine: TrainingEngineMaker | None = None,
        runtime: Runtime = "onnxruntime",
    ) -> None:
        self.bundle, self.runtime = bundle, runtime
        self._threads = threads
        self._make_engine = make_engine
        self._make_training_engine = make_training_engine
        self._engine: tuple[int, Engine[Any]] | None = None
        self._training_engine: TrainingEngine | None = None
        self._replay_rate: float | None = None
        self.rows = load_rows(bundle, data)

    @property
    def copies(self) -> bool:
        """Whether a round works on a copy of the adapter; every weight of a model would not fit twice."""
        return self.bundle.manifest.train == "lora"

    def engine(self, split: int) -> Engine[Any]:
        """Return the engine at a split; the last one used is kept."""
        if self._engine is None or self._engine[0] != split:
            self._engine = self._training_engine = None
            self._engine = (split, self._make_engine(self.bundle, split, self._threads))
        return self._engine[1]

    def training_engine(self) -> TrainingEngine:
        """Return the engine of the training graphs; the last engine used is kept."""
        if self._training_engine is None:
            self._engine = None
            make = self._make_training_engine or functools.partial(make_training_engine, self.runtime)
            self._training_engine = make(self.bundle, self._threads)
        return self._training_engine

    def replay_parameters_per_s(self, clock: Callable[[], float]) -> float:
        """Return how many parameters × directions this machine replays a second; measured once, in some ms."""
        if self._replay_rate is None:
            self._replay_rate = replay_parameters_per_s(clock)
        return self._replay_rate
