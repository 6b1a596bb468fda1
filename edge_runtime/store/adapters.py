"""Gets the adapter that a plan names: from disk, by replaying logs, or by fetching the file."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from edge_runtime.bundle.adapter import check_adapter, check_finite, map_adapter
from edge_runtime.bundle.layout import total_size
from edge_runtime.errors import BundleError, NetworkError, ProtocolError, TrainingError
from edge_runtime.forward_only.replay_file import follow_logs
from edge_runtime.protocol.round_log import decode_chain

if TYPE_CHECKING:
    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.network.fetch import Fetcher
    from edge_runtime.protocol.messages import AdapterRef
    from edge_runtime.store.store import Store
    from edge_runtime.values import FloatVector

_LOG = logging.getLogger(__name__)


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
