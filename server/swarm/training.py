"""Trains the rounds of a process's sessions with a device's own code: one bundle, one set of rows, one engine.

The rounds are trained one after the other, in a thread, so that messages are answered meanwhile. An engine is a
function of its inputs, and the sessions' adapters are equal between rounds: a thousand sessions take little more memory
than one. An adapter is fetched once for a process, not once for each session.
"""

from __future__ import annotations

import concurrent.futures
import logging
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from msgspec import UNSET

from edge_runtime.agent.back_stacks import BackStacks
from edge_runtime.agent.birth import METHODS
from edge_runtime.agent.config import EdgeConfig
from edge_runtime.agent.forward_plan import do_forward
from edge_runtime.agent.frozen_fronts import FrozenFronts
from edge_runtime.agent.loaded_bundle import LoadedBundle
from edge_runtime.agent.reports import SessionFacts, round_report
from edge_runtime.bundle.folder import open_bundle, verify_files
from edge_runtime.data.config import DataConfig
from edge_runtime.engines.choose import Engines
from edge_runtime.engines.golden import check_golden
from edge_runtime.engines.least_versions import check_versions, installed_versions
from edge_runtime.errors import ConfigError, FaultError, as_covey_error
from edge_runtime.host.threads import usable_threads
from edge_runtime.network.fetch import Fetcher
from edge_runtime.network.mirror import Mirrors
from edge_runtime.protocol.plans import SyncPlan, TrainPlan
from edge_runtime.protocol.reports import Synced
from edge_runtime.store.adapters import obtain_adapter, obtain_moment
from edge_runtime.store.store import Store
from server.swarm.answers import Trains
from server.swarm.drawn_rows import write_drawn_rows

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_runtime.bundle.manifest import Runtime
    from edge_runtime.network.address import TlsFiles
    from edge_runtime.protocol.reports import RoundReport
    from edge_runtime.values import FloatVector
    from server.swarm.asked import Answer, Asked

_LOG = logging.getLogger(__name__)
_RUNTIME: Runtime = "onnxruntime"
_SEED = 0


@dataclass(frozen=True)
class TrainingOptions:
    """What the sessions of a process train.

    Attributes:
        bundle: the bundle's folder.
        rows: the rows that every session has, a file as in ``[data]`` of edge.toml; None: drawn ones.
        processes: that share the machine's cores.
    """

    bundle: Path
    rows: Path | None
    processes: int


class Training:
    """Trains what sessions are asked for, in the order in which they ask.

    Args:
        options: what they train.
        folder: holds the adapters that are in use, and activations of frozen fronts; nothing else needs it.
        tls: files of any of the members, for blobs of a fleet with certificates; None: there are none.

    Raises:
        BundleError: the bundle is damaged, or ONNX Runtime gives other results than its golden vectors.
        ConfigError: a library is not installed, or is older than the bundle needs.
        DataError: the rows do not fit the bundle.
    """

    def __init__(self, options: TrainingOptions, folder: Path, tls: TlsFiles | None) -> None:
        threads = max(1, usable_threads().count // options.processes)
        bundle, engines = open_bundle(options.bundle), Engines(_RUNTIME, threads)
        verify_files(bundle)
        check_versions(bundle.manifest, _RUNTIME)
        check_golden(bundle, engines)
        drawn = folder / "rows.jsonl"
        rng = np.random.Generator(np.random.PCG64(_SEED))
        rows = options.rows or write_drawn_rows(drawn, bundle.manifest.task, rng)
        data = DataConfig(path=str(rows))
        config = EdgeConfig(name="swarm", broker="", data=data, state_dir=str(folder), threads=threads)
        self._loaded = LoadedBundle(bundle, data, engines)
        self._ways = (FrozenFronts(config, folder), BackStacks(config, folder, lambda: None))
        self._store, self._tls, self._mirrors = Store(folder), tls, Mirrors(tls)
        self._at_hand: tuple[tuple[str, str | None], FloatVector, FloatVector | None] | None = None
        self._link_bytes_per_s: float | None = None
        self._ending = threading.Event()
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="training")
        self.trains = Trains(METHODS, len(self._loaded.rows), installed_versions(_RUNTIME), bundle.sha256)

    def begin(self, asked: Asked, done: Callable[[Answer], None]) -> None:
        """Train a round, or take over an adapter, when its turn comes.

        Args:
            asked: what is asked for.
            done: gets the answer, the error that it ended with, or None where it was not wanted any more; called in
                the training thread, and not at all once ``close`` was called.
        """

        def work() -> None:
            try:
                answer: Answer = self._answer(asked)
            except Exception as error:  # noqa: BLE001 nothing that happens in one round ends the others
                answer = as_covey_error(error)
                if isinstance(answer, FaultError):
                    _LOG.exception("round %d of job %s: %s", asked.plan.round, asked.plan.job, answer)
            if not self._ending.is_set():
                done(answer)

        self._thread.submit(work)

    def close(self) -> None:
        """Give up what waits, and return when the step that is at work has ended."""
        self._ending.set()
        self._thread.shutdown(wait=True, cancel_futures=True)
        fronts, stacks = self._ways
        fronts.close()
        stacks.close()

    def _goes_on(self, asked: Asked) -> bool:
        return not self._ending.is_set() and asked.goes_on()

    def _answer(self, asked: Asked) -> RoundReport | Synced | None:
        plan, loaded = asked.plan, self._loaded
        if not self._goes_on(asked):
            return None
        if plan.bundle_sha256 != loaded.bundle.sha256:
            raise ConfigError(
                f"this swarm trains bundle {loaded.bundle.sha256[:12]}, the plan names {plan.bundle_sha256[:12]}",
                "give covey swarm the --bundle that the job was submitted with",
            )
        theta, moment, fetched_bytes = self._adapter(plan, asked.blob_url)
        if isinstance(plan, SyncPlan):
            have = plan.adapter.file.sha256  # obtain_adapter has hashed the bytes
            return Synced(
                job=plan.job, round=plan.round, device=asked.device, adapter_sha256=have, blob_bytes=fetched_bytes
            )
        start, clock = (theta, moment), time.monotonic
        goes_on = lambda _step, _loss: self._goes_on(asked)  # noqa: E731
        result = do_forward(plan, asked.device, loaded, self._ways, start, goes_on, clock)
        if result is None:
            return None
        facts = SessionFacts(
            device=asked.device,
            examples=len(loaded.rows),
            link_bytes_per_s=self._link_bytes_per_s,
            replay_parameters_per_s=loaded.replay_parameters_per_s(clock),
            blob_bytes=fetched_bytes,
        )
        return round_report(plan, result, facts)

    def _adapter(self, plan: TrainPlan | SyncPlan, blob_url: str) -> tuple[FloatVector, FloatVector | None, int]:
        """Return the plan's adapter, the moment beside it, and how many bytes had to be fetched for them."""
        wanted = plan.adapter.moment if isinstance(plan, TrainPlan) else UNSET
        key = (plan.adapter.file.sha256, None if wanted is UNSET else wanted.sha256)
        if self._at_hand is not None and self._at_hand[0] == key:
            return (*self._at_hand[1:], 0)
        fetcher = Fetcher(blob_url, self._pause, tls=self._tls, mirror=self._mirrors.at(plan.blob_mirror))
        theta = obtain_adapter(self._store, fetcher, self._loaded.bundle, plan.adapter)
        moment = None if wanted is UNSET else obtain_moment(self._store, fetcher, self._loaded.bundle, plan.adapter)
        self._at_hand = (key, theta, moment)
        self._link_bytes_per_s = fetcher.bytes_per_s or self._link_bytes_per_s
        return theta, moment, fetcher.fetched_bytes

    def _pause(self, seconds: float) -> None:
        self._ending.wait(seconds)
