"""Measures how well the device's own model does on held-out rows, between two plans, batch by batch.

A plan that arrives waits for one batch at most. What was measured for a model counts when all rows are through; where
the model changes before, the measurement begins anew with the next one.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.bundle.memory_need import predict_bytes
from edge_runtime.data.rows import EncodedCompletions, EncodedRows, load_rows
from edge_runtime.engines.choose import Engines
from edge_runtime.engines.predict import BATCH_SIZE, right_answers
from edge_runtime.errors import ConfigError, CoveyError, TrainingError, storage_error
from edge_runtime.files.hashing import file_sha256
from edge_runtime.store.accuracies import Measured, add_measured
from edge_runtime.store.journal import JOURNAL_FILE
from edge_runtime.store.model import model_parameters, named_model, open_model_bundle
from edge_runtime.store.versions import VERSIONS_FILE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from edge_runtime.agent.config import EdgeConfig
    from edge_runtime.data.config import DataConfig
    from edge_runtime.device.machine import Machine
    from edge_runtime.store.model import Named
    from edge_runtime.store.store import Store

_LOG = logging.getLogger(__name__)


class HeldOutWatch:
    """Measures each model that stays long enough. Without held-out rows ([updates] own_rows) it does nothing.

    Args:
        config: the device's configuration.
        store: its state directory.
        machine: the machine, for its free memory and its wall clock.
    """

    def __init__(self, config: EdgeConfig, store: Store, machine: Machine) -> None:
        self._data, self._store, self._machine = config.own_rows, store, machine
        self._engines = Engines(config.engine, config.threads, config.execution_providers)
        self._stamp: list[int | None] | None = None  # of the files that say which model and rows there are
        self._last: tuple[Named, int | None] | None = None  # what was measured last, or is being measured
        self._at_work: Iterator[None] | None = None

    def turn(self, has_plan: Callable[[], bool]) -> bool:
        """Measure until a plan is here; return whether a measurement was finished. What fails is said in the log.

        Args:
            has_plan: whether a plan waits; asked after each batch.
        """
        if self._data is None:
            return False
        try:
            self._look(self._data)
            while self._at_work is not None and not has_plan():
                try:
                    next(self._at_work)
                except StopIteration:
                    self._at_work = None
                    return True
        except CoveyError as error:
            self._at_work = None
            _LOG.warning("the accuracy on own rows is not known: %s", error.public)
        return False

    def _look(self, data: DataConfig) -> None:
        """Begin a measurement where there is another model, or there are other rows, than at the last one."""
        root = self._store.root
        rows = _changed_ns(Path(data.path))
        stamp = [_changed_ns(root / JOURNAL_FILE), _changed_ns(root / VERSIONS_FILE), rows]
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            named = named_model(self._store)
        except ConfigError:
            return  # there is none yet
        if (named, rows) != self._last:
            self._last = named, rows
            self._at_work = self._measure(named, data)

    def _measure(self, named: Named, data: DataConfig) -> Iterator[None]:
        """Yield after each batch; the graph is let go at the end."""
        bundle = open_model_bundle(self._store, named, self._engines.runtime)
        theta = model_parameters(self._store, named, bundle)
        rows = load_rows(bundle, data)
        needed, free = predict_bytes(bundle.manifest, BATCH_SIZE, self._engines.runtime), self._machine.free_bytes()
        if free is not None and needed > free:
            raise TrainingError(f"one more graph needs {needed} bytes of memory, {free} are free", "free some memory")
        predictor, labels = self._engines.make_predictor(bundle), len(bundle.manifest.task.labels)
        right = answers = 0
        for start in range(0, len(rows), BATCH_SIZE):
            found = right_answers(predictor, theta, _part(rows, slice(start, start + BATCH_SIZE)), labels)
            right, answers = right + found[0], answers + found[1]
            yield
        try:
            rows_sha256 = file_sha256(Path(data.path))
        except OSError as error:
            raise storage_error(error, data.path) from error
        measured = Measured(
            at_s=self._machine.wall_clock(),
            bundle_sha256=bundle.sha256,
            adapter_sha256=None if named.adapter is None else named.adapter.stem,
            personal_sha256=named.personal_sha256,
            rows_sha256=rows_sha256,
            rows=len(rows),
            accuracy=right / answers,
        )
        add_measured(self._store.root, measured)
        _LOG.info("accuracy on %d own rows: %.3f", measured.rows, measured.accuracy)


def _part(rows: EncodedRows | EncodedCompletions, part: slice) -> EncodedRows | EncodedCompletions:
    if isinstance(rows, EncodedCompletions):
        return EncodedCompletions(rows.tokens[part], rows.predicted[part], rows.pad_token_id)
    return EncodedRows(rows.tokens[part], rows.labels[part], rows.pad_token_id)


def _changed_ns(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None
