"""Gets a plan's bundle and adapter, trains its round, and makes the report."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.agent.back_stacks import BackStacks
from edge_runtime.agent.backprop_plan import do_backprop
from edge_runtime.agent.deaths import begun_of
from edge_runtime.agent.forward_plan import do_forward
from edge_runtime.agent.frozen_fronts import FrozenFronts
from edge_runtime.agent.loaded_bundle import LoadedBundle
from edge_runtime.agent.reports import SessionFacts, delta_report, round_report
from edge_runtime.bundle.manifest import MANIFEST_FILE
from edge_runtime.data.watch import RowsWatch
from edge_runtime.device.memory import peak_rss_bytes
from edge_runtime.engines.choose import Engines
from edge_runtime.errors import BundleError, ConfigError, DataError
from edge_runtime.files.atomic import write_atomically
from edge_runtime.network.fetch import Fetcher
from edge_runtime.network.mirror import Mirrors
from edge_runtime.protocol.delta import encode_delta
from edge_runtime.protocol.plans import SyncPlan, TrainPlan
from edge_runtime.store.adapters import obtain_adapter, obtain_moment
from edge_runtime.store.bundles import TrustPlace, install_bundle
from edge_runtime.store.journal import PersonalRound
from edge_runtime.store.personal import personal_or_none, save_personal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from edge_runtime.agent.config import EdgeConfig
    from edge_runtime.device.machine import Machine
    from edge_runtime.engines.engine import MakesEngines
    from edge_runtime.protocol.plans import BackpropPlan, Plan
    from edge_runtime.protocol.reports import Report
    from edge_runtime.store.journal_file import JournalFile
    from edge_runtime.store.store import Store
    from edge_runtime.values import FloatVector


@dataclass(frozen=True)
class Prepared:
    """What a plan needs on the device.

    Attributes:
        loaded: the plan's bundle.
        theta: the plan's adapter, float32, (parameters,), mapped.
        fetched_bytes: bytes that were fetched for the adapter.
        has_news: whether the bundle or the number of rows is not the one that was announced last.
        moment: the moment beside the adapter, float32, (parameters,), mapped; None: the plan needs none.
    """

    loaded: LoadedBundle
    theta: FloatVector
    fetched_bytes: int
    has_news: bool
    moment: FloatVector | None = None


def trust_place(config: EdgeConfig) -> TrustPlace | None:
    """Return where pinned release keys would be: beside the device's key; None: the device has no key."""
    keys = config.signing
    return None if keys is None else TrustPlace(Path(keys.key_file).parent, config.fleet)


class Trainer:
    """Trains the rounds of plans. Keeps the bundle of the last plan loaded.

    Args:
        config: the device's configuration.
        store: its state directory.
        journal: its journal; the trainer enters plans, the agent the reports.
        engines: makes the engines.
        machine: the machine it runs on.
        pause: waits before a transfer is tried again, in seconds; what it raises ends the transfer.
        contained: whether a bundle that is new here is tried in a child process first: see require_trial.
    """

    def __init__(
        self,
        config: EdgeConfig,
        store: Store,
        journal: JournalFile,
        engines: MakesEngines,
        machine: Machine,
        pause: Callable[[float], None] = time.sleep,
        *,
        contained: bool = False,
    ) -> None:
        self._config, self._store, self._journal = config, store, journal
        self._engines, self._machine, self._pause, self._contained = engines, machine, pause, contained
        self._loaded: LoadedBundle | None = None
        self._fronts = FrozenFronts(config, store.root, machine.boot_id)
        self._stacks = BackStacks(config, store.root, machine.free_bytes)
        self._link_bytes_per_s: float | None = None
        self._mirrors = Mirrors(config.tls)
        corrections = Path(config.data.corrections) if config.data.corrections else None
        self.rows_watch = RowsWatch(Path(config.data.path), corrections)
        self._rows_read: tuple[object, ...] | None = None  # the stamp of the rows that are loaded

    @property
    def loaded(self) -> LoadedBundle | None:
        """The bundle of the last plan; None: there has been none since the start."""
        return self._loaded

    def prepare(self, plan: Plan, blob_url: str) -> Prepared:
        """Get a plan's bundle and adapter, from disk or from the server, and enter them in the journal.

        A sync plan needs no rows: they are neither read nor judged.

        Args:
            plan: a plan of any kind.
            blob_url: the base address of the server's blobs.

        Raises:
            NetworkError, BundleError, StorageError: the bundle or the adapter could not be had.
            DataError: the private rows do not fit the bundle.
        """
        self._store.make_folders()
        if self._loaded is not None and not self._loaded.bundle.file(MANIFEST_FILE).is_file():
            self._loaded = None  # somebody has removed the state directory
        with self._doubt():
            mirror = self._mirrors.at(plan.blob_mirror)
            return self._get(plan, Fetcher(blob_url, self._pause, tls=self._config.tls, mirror=mirror))

    def _get(self, plan: Plan, fetcher: Fetcher) -> Prepared:
        known_rows = None if self._loaded is None else self._loaded.known_rows
        is_new = self._loaded is None or self._loaded.bundle.sha256 != plan.bundle_sha256
        if self._loaded is None or is_new:
            self._loaded = None
            self._fronts.close()
            self._stacks.close()
            self.rows_watch.expect(plan.bundle_sha256)
            checked_on = Engines(self._config.engine, self._config.threads, self._config.execution_providers)
            bundle = install_bundle(
                self._store,
                fetcher,
                plan.bundle_sha256,
                checked_on,
                contained=self._contained,
                trust=trust_place(self._config),
            )
            self._loaded = LoadedBundle(bundle, self._config.data, self._engines)
        if not isinstance(plan, SyncPlan):
            self._read_rows(self._loaded)
        elif plan.final:
            self._fronts.close()
            self._stacks.close()
        fetcher.fetched_bytes = 0
        theta = obtain_adapter(self._store, fetcher, self._loaded.bundle, plan.adapter)
        trains = isinstance(plan, TrainPlan)
        moment = obtain_moment(self._store, fetcher, self._loaded.bundle, plan.adapter) if trains else None
        self._link_bytes_per_s = fetcher.bytes_per_s or self._link_bytes_per_s
        begun = None if isinstance(plan, SyncPlan) else begun_of(plan, self._loaded, self._machine)
        self._journal.begin_plan(plan.job, plan.bundle_sha256, plan.adapter.file.sha256, begun)
        has_news = is_new or self._loaded.known_rows != known_rows
        return Prepared(self._loaded, theta, fetcher.fetched_bytes, has_news, moment)

    def _read_rows(self, loaded: LoadedBundle) -> None:
        stamp = self.rows_watch.stamp()
        if stamp is not None and stamp != self._rows_read:
            loaded.forget_rows()  # what was added or corrected counts from this round on
        try:
            _ = loaded.rows
        except DataError as error:
            self.rows_watch.refuse(stamp, loaded.bundle.sha256, error)
            raise
        self._rows_read = stamp
        self.rows_watch.forget()

    def train(
        self, plan: TrainPlan | BackpropPlan, prepared: Prepared, goes_on: Callable[[int, float], bool]
    ) -> tuple[Report, PersonalRound | None] | None:
        """Train a plan's round.

        Args:
            plan: the round's plan.
            prepared: what prepare returned for it.
            goes_on: called after each step with its index and loss; the round is abandoned when it returns False.

        Returns:
            The report, and the personal layers of a backprop round, whose files count once the journal names them;
            None where the round was abandoned.

        Raises:
            CoveyError: see do_forward, do_backprop and write_atomically.
        """
        with self._doubt():
            if isinstance(plan, TrainPlan):
                return self._forward(plan, prepared, goes_on)
            return self._backprop(plan, prepared, goes_on)

    @contextlib.contextmanager
    def _doubt(self) -> Iterator[None]:
        """Let the next plan check the bundle on disk again where this one fails: its files may be damaged or gone."""
        try:
            yield
        except (BundleError, OSError):
            self._loaded = None
            raise

    def _forward(
        self, plan: TrainPlan, prepared: Prepared, goes_on: Callable[[int, float], bool]
    ) -> tuple[Report, None] | None:
        loaded, clock = prepared.loaded, self._machine.clock
        ways, start = (self._fronts, self._stacks), (prepared.theta, prepared.moment)
        result = do_forward(plan, self._config.name, loaded, ways, start, goes_on, clock)
        return None if result is None else (round_report(plan, result, self._facts(prepared)), None)

    def _backprop(
        self, plan: BackpropPlan, prepared: Prepared, goes_on: Callable[[int, float], bool]
    ) -> tuple[Report, PersonalRound] | None:
        """Train a backprop round and write its delta and personal layers, which count once the journal names them."""
        if not self._config.backpropagates:
            raise ConfigError("the plan needs backpropagation, this device is forward-only", 'set training = "auto"')
        self._stacks.close()
        loaded, bundle = prepared.loaded, prepared.loaded.bundle
        before_sha256 = self._journal.entries.personal_at_start_of(plan.round)
        personal = personal_or_none(self._store, before_sha256, bundle, plan.job)
        bytes_free, clock = self._machine.free_bytes(), self._machine.clock
        start, fronts = (prepared.theta, personal), self._fronts
        result = do_backprop(plan, self._config.name, loaded, fronts, start, bytes_free, goes_on, clock)
        if result is None:
            return None
        manifest = bundle.manifest
        delta = encode_delta(result.movement, manifest.parameters, result.sent, manifest.model.layers)
        report = delta_report(plan, result, delta, self._facts(prepared))
        write_atomically(self._store.delta_file(report.delta.sha256), delta)
        keeps = plan.stld.personal_share > 0
        after_sha256 = save_personal(self._store, bundle, plan.job, result.personal) if keeps else None
        return report, PersonalRound(plan.round, before_sha256, after_sha256)

    def _facts(self, prepared: Prepared) -> SessionFacts:
        return SessionFacts(
            device=self._config.name,
            examples=len(prepared.loaded.rows),
            link_bytes_per_s=self._link_bytes_per_s,
            replay_parameters_per_s=prepared.loaded.replay_parameters_per_s(self._machine.clock),
            blob_bytes=prepared.fetched_bytes,
            peak_rss_bytes=peak_rss_bytes(),
        )
