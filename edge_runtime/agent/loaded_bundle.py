"""What a device has at hand for one bundle: the checked bundle, its encoded rows, its engine, its current adapter."""

from __future__ import annotations

import functools
import logging
import shutil
from typing import TYPE_CHECKING, Any

from edge_runtime.bundle.folder import Bundle, open_bundle, verify_files
from edge_runtime.bundle.layout import total_size
from edge_runtime.bundle.manifest import read_manifest
from edge_runtime.data.rows import load_rows
from edge_runtime.engines.choose import make_training_engine
from edge_runtime.errors import BundleError, NetworkError, ProtocolError, TrainingError, storage_error
from edge_runtime.forward_only.replay_file import check_adapter, check_finite, follow_logs, map_adapter
from edge_runtime.network.fetch import fetch_bundle
from edge_runtime.profiling.rates import replay_parameters_per_s
from edge_runtime.protocol.round_log import decode_chain

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_runtime.agent.config import DataConfig
    from edge_runtime.bundle.manifest import Runtime
    from edge_runtime.engines.engine import Engine, TrainingEngine
    from edge_runtime.network.fetch import Fetcher
    from edge_runtime.perturbation.perturb import FloatVector
    from edge_runtime.protocol.messages import AdapterRef
    from edge_runtime.store.store import Store

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


def install_bundle(store: Store, fetcher: Fetcher, sha256: str, threads: int, runtime: Runtime) -> Bundle:
    """Return a checked bundle: from disk if it is there and whole, else fetched.

    Raises:
        NetworkError, BundleError, StorageError: it could not be had; what was there before stays.
    """
    path = store.bundles / sha256
    if path.is_dir():
        try:
            bundle = open_bundle(path)
            verify_files(bundle)
        except BundleError as error:
            _LOG.warning("the bundle on disk is damaged (%s); fetching what is wrong again", error.what)
            _set_aside(path)
        else:
            return bundle
    _LOG.info("fetching bundle %s", sha256[:12])

    def check(bundle: Bundle) -> None:
        from edge_runtime.engines.golden import check_golden  # noqa: PLC0415 not at hand on a device that waits

        check_golden(bundle, threads, runtime)

    return fetch_bundle(fetcher, sha256, store.bundles, check)


def _set_aside(path: Path) -> None:
    """Make a damaged bundle one that is being fetched: its good files need not travel again, extra ones go."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        path.replace(partial)
        try:
            listed = {entry.path for entry in read_manifest(partial)[0].files}
        except BundleError:
            listed = set()
        for file in partial.rglob("*"):
            if file.is_file() and file.relative_to(partial).as_posix() not in listed:
                file.unlink()
    except OSError as error:
        raise storage_error(error, path) from error


def obtain_adapter(store: Store, fetcher: Fetcher, bundle: Bundle, reference: AdapterRef) -> FloatVector:
    """Return the adapter of a plan, mapped, by the shortest way that ends on its hash, and keep it on disk.

    It may be on disk already or be the bundle's own; else the replay logs are followed; else the file is fetched.

    Raises:
        NetworkError, BundleError, StorageError: it could not be had.
    """
    wanted, size = reference.file.sha256, total_size(bundle.manifest.parameters)
    if (theta := _at_hand(store, bundle, wanted)) is not None:
        return theta
    if reference.log is not None and reference.log_base_sha256 is not None:
        base = _at_hand(store, bundle, reference.log_base_sha256)
        needed = reference.log_previous_sha256
        previous = None if needed is None else _at_hand(store, bundle, needed)
        if base is not None and (needed is None or previous is not None):
            _follow(store, fetcher, base, previous, reference)
    if (theta := _at_hand(store, bundle, wanted)) is None:
        fetcher.file(wanted, 4 * size, store.adapter_file(wanted))
        theta = map_adapter(store.adapter_file(wanted), size)
        check_finite(theta)  # the fetcher has looked at the hash
        store.forget_old_adapters()
    return theta


def _at_hand(store: Store, bundle: Bundle, sha256: str) -> FloatVector | None:
    """Return an adapter that needs no network; a damaged file counts as absent."""
    path = store.adapter_file(sha256)
    if path.exists():
        try:
            theta = map_adapter(path, total_size(bundle.manifest.parameters))
            check_adapter(theta, sha256)
        except BundleError as error:
            _LOG.warning("adapter %s on disk is of no use: %s", sha256[:12], error.what)
            path.unlink()
        else:
            return theta
    return bundle.initial_adapter() if bundle.initial_sha256 == sha256 else None


def _follow(
    store: Store, fetcher: Fetcher, base: FloatVector, previous: FloatVector | None, reference: AdapterRef
) -> None:
    """Replay a chain of logs into the store; where they do not lead to the adapter, the file heals it."""
    assert reference.log is not None  # noqa: S101
    assert reference.log_base_sha256 is not None  # noqa: S101
    try:
        logs = decode_chain(fetcher.data(reference.log.sha256, reference.log.size_bytes))
        with_momentum = logs[-1].momentum > 0
        partial = store.adapter_file(logs[-1].result_sha256).with_suffix(".partial")
        before = store.adapter_file(logs[-1].base_sha256).with_suffix(".before") if with_momentum else None
        follow_logs(partial, base, reference.log_base_sha256, logs, previous, before)
        # The next round's momentum needs the adapter before this one.
        if before is not None:
            store.keep_adapter(before, logs[-1].base_sha256)
        store.keep_adapter(partial, logs[-1].result_sha256)
    except (TrainingError, ProtocolError, NetworkError) as error:
        _LOG.warning("replay failed, fetching the adapter instead: %s", error.what)
