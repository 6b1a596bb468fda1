"""What a device has at hand for one bundle: the checked bundle, its encoded rows, its engine, its current adapter."""

from __future__ import annotations

import logging
import shutil
from typing import TYPE_CHECKING

import msgspec

from edge_runtime.bundle import Bundle, open_bundle, verify_files
from edge_runtime.errors import BundleError, NetworkError, ProtocolError, TrainingError, storage_error
from edge_runtime.fetch import fetch_bundle
from edge_runtime.layout import adapter_sha256, from_bytes, to_bytes, total_size
from edge_runtime.manifest import read_manifest
from edge_runtime.replay import RoundLog, replay_checked
from edge_runtime.rows import load_rows

if TYPE_CHECKING:
    from pathlib import Path

    from edge_runtime.config import DataConfig
    from edge_runtime.engine_onnxruntime import OnnxEngine
    from edge_runtime.fetch import Fetcher
    from edge_runtime.perturbation import FloatVector
    from edge_runtime.protocol import AdapterRef, BlobRef
    from edge_runtime.store import Store

_LOG = logging.getLogger(__name__)
ROUND_LOG_VERSION = 1


class Workshop:
    """A bundle that is ready to train.

    ONNX Runtime and the tokenizer are loaded when they are first needed: a device that waits for work stays small.

    Args:
        bundle: a checked bundle.
        data: the private rows.
        threads: threads of one operator.
    """

    def __init__(self, bundle: Bundle, data: DataConfig, threads: int) -> None:
        self.bundle = bundle
        self._threads = threads
        self._engine: tuple[int, OnnxEngine] | None = None
        self.rows = load_rows(bundle, data)

    def engine(self, split: int) -> OnnxEngine:
        """Return the engine at a split; the last one used is kept."""
        from edge_runtime.engine_onnxruntime import OnnxEngine  # noqa: PLC0415 loaded with the first bundle

        if self._engine is None or self._engine[0] != split:
            self._engine = None
            self._engine = (split, OnnxEngine(self.bundle, split, self._threads))
        return self._engine[1]


def install_bundle(store: Store, fetcher: Fetcher, sha256: str, threads: int) -> Bundle:
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
        from edge_runtime.golden import check_golden  # noqa: PLC0415 loads ONNX Runtime

        check_golden(bundle, threads)

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
    """Return the adapter of a plan, by the shortest way that ends on its hash, and keep it on disk.

    It may be on disk already or be the bundle's own; else the replay logs are followed; else the file is fetched.

    Raises:
        NetworkError, BundleError, StorageError: it could not be had.
    """
    wanted = reference.file.sha256
    parameters = bundle.manifest.parameters
    theta = _on_disk(store, bundle, wanted)
    if theta is None and reference.logs_base_sha256 is not None:
        base = _on_disk(store, bundle, reference.logs_base_sha256)
        theta = _follow_logs(base, fetcher, reference.logs, wanted) if base is not None else None
    if theta is None:
        theta = from_bytes(fetcher.data(wanted, 4 * total_size(parameters)), parameters)
    if not store.adapter_file(wanted).exists():
        store.write_adapter(wanted, to_bytes(theta))
    return theta


def _on_disk(store: Store, bundle: Bundle, sha256: str) -> FloatVector | None:
    """Return an adapter that needs no network; a damaged file counts as absent."""
    path = store.adapter_file(sha256)
    if path.exists():
        try:
            theta = from_bytes(path.read_bytes(), bundle.manifest.parameters)
        except BundleError as error:
            _LOG.warning("adapter %s on disk is damaged: %s", sha256[:12], error.what)
        else:
            if adapter_sha256(theta) == sha256:
                return theta
            _LOG.warning("adapter %s on disk is damaged: its hash differs", sha256[:12])
        path.unlink()
    initial = bundle.initial_adapter()
    return initial if adapter_sha256(initial) == sha256 else None


def _follow_logs(theta: FloatVector, fetcher: Fetcher, logs: list[BlobRef], wanted: str) -> FloatVector | None:
    """Replay logs; None where they do not lead to the wanted adapter (the file then heals it)."""
    try:
        for blob in logs:
            theta = replay_checked(theta, decode_log(fetcher.data(blob.sha256, blob.size_bytes)))
    except (TrainingError, ProtocolError, NetworkError) as error:
        _LOG.warning("replay failed, fetching the adapter instead: %s", error.what)
        return None
    return theta if adapter_sha256(theta) == wanted else None


def encode_log(log: RoundLog) -> bytes:
    """Return a replay log's bytes."""
    return msgspec.msgpack.encode(log)


def decode_log(data: bytes) -> RoundLog:
    """Read a replay log.

    Raises:
        ProtocolError: not one, or of another version.
    """
    try:
        log = msgspec.msgpack.decode(data, type=RoundLog)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(f"a replay log cannot be read: {error}", "install the same version everywhere") from error
    if log.v != ROUND_LOG_VERSION:
        raise ProtocolError(
            f"a replay log has version {log.v}, this Covey reads version {ROUND_LOG_VERSION}",
            "install the same version of Covey on the devices and on the server",
        )
    return log
