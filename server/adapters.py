"""The chain of adapters of a job, and the cheaper way for a device to get to its end: replay logs, or the file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_runtime.layout import adapter_sha256, from_bytes, to_bytes
from edge_runtime.protocol import AdapterRef, BlobRef
from server.errors import JobError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_runtime.bundle import Bundle
    from edge_runtime.perturbation import FloatVector
    from server.blobs import BlobStore
    from server.ledger import ClosedRound


class AdapterChain:
    """The adapters of a job from the bundle's initial one on.

    Args:
        bundle: the job's bundle.
        blobs: where adapters and logs are kept.
        closed: rounds that are done, where a job is resumed.

    Raises:
        JobError: a resumed job's adapter is not in ``blobs``.
    """

    def __init__(self, bundle: Bundle, blobs: BlobStore, closed: Sequence[ClosedRound]) -> None:
        self._blobs = blobs
        initial = bundle.initial_adapter()
        self.initial_sha256 = adapter_sha256(initial)
        self.closed = list(closed)
        self.theta = self._load(bundle) if closed else initial
        self._current = self._blobs.add(to_bytes(self.theta))

    def _load(self, bundle: Bundle) -> FloatVector:
        wanted = self.closed[-1].result_sha256
        data = self._blobs.read(wanted)
        if data is None:
            raise JobError(f"adapter {wanted[:12]} is not in the state directory", "restore it, or begin a new job")
        return from_bytes(data, bundle.manifest.parameters)

    @property
    def sha256(self) -> str:
        """The current adapter's hash."""
        return self._current.sha256

    @property
    def mean_square(self) -> float | None:
        """Mean square of the last round's scalars."""
        return self.closed[-1].mean_square if self.closed else None

    def keep(self, theta: FloatVector) -> str:
        """Keep a new adapter's file; the chain does not go on to it yet."""
        return self._blobs.add(to_bytes(theta)).sha256

    def advance(self, theta: FloatVector, closed: ClosedRound) -> None:
        """Go on to the adapter of a closed round."""
        self.theta = theta
        self.closed.append(closed)
        self._current = BlobRef(closed.result_sha256, 4 * theta.size)

    def reference(self, device_adapter_sha256: str | None) -> AdapterRef:
        """Return the current adapter, with the logs to it where they are fewer bytes than the file.

        Args:
            device_adapter_sha256: what the device has; None: only the bundle.
        """
        base = device_adapter_sha256 or self.initial_sha256
        logs: list[BlobRef] = []
        reached = self.sha256
        for closed in reversed(self.closed):
            if reached == base:
                break
            logs.insert(0, BlobRef(closed.log_sha256, closed.log_size_bytes))
            reached = closed.base_sha256
        cheaper = sum(log.size_bytes for log in logs) < self._current.size_bytes
        if reached != base or not logs or not cheaper:
            return AdapterRef(self._current, [], None)
        return AdapterRef(self._current, logs, base)
