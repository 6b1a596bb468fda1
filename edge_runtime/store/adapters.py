"""Gets the adapter that a plan names, and its moment: from disk, by replaying logs, or by fetching the file."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from edge_runtime.bundle.adapter import check_adapter, check_finite, map_adapter
from edge_runtime.bundle.layout import total_size
from edge_runtime.errors import BundleError, NetworkError, ProtocolError, TrainingError
from edge_runtime.files.aside import set_aside
from edge_runtime.forward_only.replay_file import follow_logs
from edge_runtime.forward_only.slices import MomentFiles
from edge_runtime.protocol.round_log import decode_chain

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.network.fetch import Fetcher
    from edge_runtime.protocol.plans import AdapterRef
    from edge_runtime.protocol.round_log import RoundLog
    from edge_runtime.store.store import Store
    from edge_runtime.values import FloatVector

_LOG = logging.getLogger(__name__)


def obtain_adapter(store: Store, fetcher: Fetcher, bundle: Bundle, reference: AdapterRef) -> FloatVector:
    """Return the adapter of a plan, mapped float32 (parameters,), and keep it on disk.

    Takes the first that ends on the adapter's hash: a file on disk or the bundle's own adapter; the replay of logs; the
    file from the server.

    Raises:
        NetworkError, BundleError, StorageError: the adapter could not be obtained.
    """
    wanted, size = reference.file.sha256, total_size(bundle.manifest.parameters)
    if (theta := _on_device(store, bundle, wanted)) is not None:
        return theta
    if reference.log is not None and reference.log_base_sha256 is not None:
        base = _on_device(store, bundle, reference.log_base_sha256)
        needed = reference.log_previous_sha256
        previous = None if needed is None else _on_device(store, bundle, needed)
        moment = moment_on_device(store, size, reference.log_moment_sha256)
        has_moment = moment is not None or reference.log_moment_sha256 is msgspec.UNSET
        if base is not None and (needed is None or previous is not None) and has_moment:
            _follow(store, fetcher, base, Earlier(previous, moment), reference)
    if (theta := _on_device(store, bundle, wanted)) is None:
        fetcher.file(wanted, 4 * size, store.adapter_file(wanted))
        theta = map_adapter(store.adapter_file(wanted), size)
        check_finite(theta)  # the fetcher has checked the hash
        store.forget_old_adapters()
    return theta


def obtain_moment(store: Store, fetcher: Fetcher, bundle: Bundle, reference: AdapterRef) -> FloatVector | None:
    """Return the moment beside a plan's adapter, mapped float32 (parameters,); None: the plan names none.

    Call it after obtain_adapter, whose replay also makes the moment.

    Raises:
        NetworkError, BundleError, StorageError: the moment could not be obtained.
    """
    if reference.moment is msgspec.UNSET:
        return None
    wanted, size = reference.moment.sha256, total_size(bundle.manifest.parameters)
    if (moment := moment_on_device(store, size, wanted)) is None:
        path = store.moment_file(wanted)
        fetcher.file(wanted, 4 * size, path)
        moment = map_adapter(path, size)
        check_finite(moment)  # the fetcher has checked the hash
        store.forget_old_adapters()
    return moment


def moment_on_device(store: Store, size: int, sha256: str | msgspec.UnsetType) -> FloatVector | None:
    """Return a moment that is on the device, else None; a damaged file counts as absent."""
    if sha256 is msgspec.UNSET:
        return None
    return _vector_on_device(store.moment_file(sha256), "moment", size, sha256, store.forget_moment)


def _on_device(store: Store, bundle: Bundle, sha256: str) -> FloatVector | None:
    """Return an adapter that is on the device, else None; a damaged file counts as absent."""
    size = total_size(bundle.manifest.parameters)
    theta = _vector_on_device(store.adapter_file(sha256), "adapter", size, sha256, store.forget_adapter)
    if theta is not None:
        return theta
    return bundle.initial_adapter() if bundle.initial_sha256 == sha256 else None


def _vector_on_device(
    path: Path, kind: str, size: int, sha256: str, forget: Callable[[str], None]
) -> FloatVector | None:
    """Return the vector of a file that was kept by its hash; None: it is not there, or damaged and removed now."""
    if path.is_dir():
        set_aside(path, f"{path} is a folder, and the {kind}'s file is to be there")
    elif path.exists() or path.is_symlink():
        try:
            vector = map_adapter(path, size)
            check_adapter(vector, sha256)
        except BundleError as error:
            _LOG.warning("%s %s on disk is unusable, and removed: %s", kind, sha256[:12], error.what)
            forget(sha256)
        else:
            return vector
    return None


@dataclass(frozen=True)
class Earlier:
    """What logs may need beside the adapter that they start from.

    Attributes:
        previous: the adapter before it, for momentum; None: it is not needed.
        moment: the moment beside it; None: the rule keeps none, or no round has left one.
    """

    previous: FloatVector | None
    moment: FloatVector | None


def _follow(store: Store, fetcher: Fetcher, base: FloatVector, earlier: Earlier, reference: AdapterRef) -> None:
    """Replay a chain of logs into the store. If that fails, the caller fetches the file."""
    assert reference.log is not None  # noqa: S101
    assert reference.log_base_sha256 is not None  # noqa: S101
    try:
        logs = decode_chain(fetcher.data(reference.log.sha256, reference.log.size_bytes))
        with_momentum = logs[-1].momentum > 0
        partial = store.adapter_file(logs[-1].result_sha256).with_suffix(".partial")
        before = store.adapter_file(logs[-1].base_sha256).with_suffix(".before") if with_momentum else None
        moment = _moment_files(store, logs[-1], earlier.moment)
        follow_logs(partial, base, reference.log_base_sha256, logs, earlier.previous, before, moment)
        if moment is not None:
            store.keep_moment(moment.path, str(logs[-1].result_moment_sha256))
        # The next round's momentum needs the adapter before this one.
        if before is not None:
            store.keep_adapter(before, logs[-1].base_sha256)
        store.keep_adapter(partial, logs[-1].result_sha256)
    except (TrainingError, ProtocolError, NetworkError, BundleError) as error:
        _LOG.warning("replay failed, fetching the adapter instead: %s", error.what)


def _moment_files(store: Store, last: RoundLog, base: FloatVector | None) -> MomentFiles | None:
    """Return where a chain's moment comes from and goes to; None: the rule of its last round keeps none."""
    if not last.rule.keeps_moment or last.result_moment_sha256 is msgspec.UNSET:
        return None
    return MomentFiles(base, store.moment_file(last.result_moment_sha256).with_suffix(".partial"))
