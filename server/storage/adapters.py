"""A job's chain of adapters, and the cheaper way for a device to get the newest one: logs to replay, or the file."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import msgspec
from msgspec import UNSET

from edge_runtime.bundle.adapter import map_adapter
from edge_runtime.errors import ShortageError
from edge_runtime.files.hashing import file_sha256
from edge_runtime.forward_only.replay_file import write_replayed
from edge_runtime.forward_only.slices import MomentFiles, replay_in_turn
from edge_runtime.protocol.plans import AdapterRef, BlobRef
from edge_runtime.protocol.round_log import decode_chain, encode_chain
from server.errors import JobError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_runtime.forward_only.slices import Replayed
    from edge_runtime.protocol.round_log import RoundLog
    from edge_runtime.values import FloatVector
    from server.storage.blobs import BlobStore
    from server.storage.records import ClosedRound

_LOG = logging.getLogger(__name__)
KEPT_FILES = 3
"""Adapter files kept: the current one, the one before it (momentum), and one that a device may still be fetching."""


class Start(Protocol):
    """Where a chain begins: a bundle, or a simulated task."""

    @property
    def initial_sha256(self) -> str:
        """Hash of the initial adapter."""

    def initial_adapter(self) -> FloatVector:
        """Return the initial adapter, float32, (parameters,)."""


@dataclass(frozen=True)
class RoundBase:
    """What a round starts from.

    Attributes:
        sha256: hash of the adapter.
        previous_sha256: hash of the adapter before it, for momentum; None in the first round.
        mean_square: mean square of the last round's scalars; None: not known.
        moment_sha256: the moment beside the adapter; None: no round has left one.
    """

    sha256: str
    previous_sha256: str | None
    mean_square: float | None
    moment_sha256: str | None = None


class AdapterChain:
    """The adapters of a job, from the bundle's initial one on.

    The last few are kept as files, and logs as long as they can be the cheaper way. The ledger keeps every scalar.

    Args:
        bundle: has the initial adapter.
        blobs: where adapters and logs are kept.
        closed: the closed rounds of a job that is resumed, in order.
        momentum: whether a replay also needs the adapter before a log's base.
        replayed: replays the slices of an adapter.

    Attributes:
        theta: the current adapter, memory-mapped, float32, (parameters,).
        closed: the closed rounds, in order.
        initial_sha256: hash of the initial adapter.

    Raises:
        JobError: an adapter of a resumed job is not in ``blobs``, or damaged.
    """

    def __init__(
        self,
        bundle: Start,
        blobs: BlobStore,
        closed: Sequence[ClosedRound],
        *,
        momentum: bool,
        replayed: Replayed = replay_in_turn,
    ) -> None:
        self._blobs = blobs
        self._replayed = replayed
        self._momentum = momentum
        self._initial = bundle.initial_adapter()
        self.initial_sha256 = bundle.initial_sha256
        self.closed = list(closed)
        self._check(self.sha256)
        if momentum and self.previous_sha256 is not None:
            self._check(self.previous_sha256)
        if self.moment_sha256 is not None:
            self._check(self.moment_sha256)
        self.theta = self._load(self.sha256)
        self._merged: dict[str, BlobRef] = {}

    def _load(self, sha256: str) -> FloatVector:
        if sha256 == self.initial_sha256:
            return self._initial
        path = self._blobs.path(sha256)
        if path is None:
            raise self._lost(sha256)
        return map_adapter(path, self._initial.size)

    def _check(self, sha256: str) -> None:
        """Check that an adapter's file is whole: else a server trains on from it, and devices refuse it for ever."""
        if sha256 != self.initial_sha256 and self._blobs.whole(sha256) is None:
            raise self._lost(sha256)

    def _lost(self, sha256: str) -> JobError:
        what = "moment" if sha256 == self.moment_sha256 else "adapter"
        return JobError(
            f"{what} {sha256[:12]} is not in the state directory, or damaged",
            f"restore {self._blobs.place(sha256)} from a backup, or from the folder {what}s of a device that has it "
            f"({sha256}.bin); or begin a new job",
        )

    @property
    def sha256(self) -> str:
        """The current adapter's hash."""
        return self.closed[-1].result_sha256 if self.closed else self.initial_sha256

    @property
    def previous_sha256(self) -> str | None:
        """Hash of the adapter before the current one; None before the first closed round."""
        return self.closed[-1].base_sha256 if self.closed else None

    @property
    def moment_sha256(self) -> str | None:
        """Hash of the moment beside the current adapter; None: the job's rule keeps none, or no round is closed."""
        return self.closed[-1].figures.moment_sha256 if self.closed else None

    @property
    def mean_square(self) -> float | None:
        """Mean square of the last round's scalars; None: not known."""
        return self.closed[-1].mean_square if self.closed else None

    @property
    def base(self) -> RoundBase:
        """What the next round starts from."""
        return RoundBase(self.sha256, self.previous_sha256, self.mean_square, self.moment_sha256)

    def extend(self, log: RoundLog) -> tuple[RoundLog, BlobRef, int]:
        """Write the adapter after a round and the round's log; advance makes it the current one.

        Returns:
            The log with the result's hash filled in, its blob, and its number of terms.

        Raises:
            TrainingError: the result is not finite.
            StorageError: the disk is full or not writable.
        """
        previous = None if log.previous_sha256 is None else self._load(log.previous_sha256)
        path, moment = self._blobs.temporary(), None
        if log.rule.keeps_moment:
            base = None if self.moment_sha256 is None else self._load(self.moment_sha256)
            moment = MomentFiles(base, self._blobs.temporary())
        result, terms = write_replayed(path, self.theta, [log], previous, moment=moment, replayed=self._replayed)
        self._blobs.adopt(path, result)
        log = msgspec.structs.replace(log, result_sha256=result)
        if moment is not None:
            kept = file_sha256(moment.path)
            self._blobs.adopt(moment.path, kept)
            log = msgspec.structs.replace(log, result_moment_sha256=kept)
        return log, self._blobs.add(encode_chain([log])), terms

    def add_file(self, theta: FloatVector) -> str:
        """Write the adapter after a round that has no log, and return its hash; advance makes it the current one.

        Raises:
            StorageError: the disk is full or not writable.
        """
        return self._blobs.add(theta.astype("<f4", copy=False).tobytes()).sha256

    def previous(self) -> FloatVector | None:
        """Return the adapter before the current one; None before the first closed round."""
        return None if self.previous_sha256 is None else self._load(self.previous_sha256)

    def advance(self, closed: ClosedRound) -> None:
        """Make a closed round's adapter the current one, and delete blobs that no device can need any more."""
        self.theta = self._load(closed.result_sha256)  # first: it may fail, and be tried again
        self.closed.append(closed)
        for merged in self._merged.values():
            self._blobs.remove(merged.sha256)
        self._merged.clear()
        needed = {done.result_sha256 for done in self.closed[-KEPT_FILES:]}
        moments = {done.figures.moment_sha256 for done in self.closed[-KEPT_FILES:]}
        for done in self.closed[-2 * KEPT_FILES : -KEPT_FILES]:
            if done.result_sha256 not in needed:
                self._blobs.remove(done.result_sha256)
            moment = done.figures.moment_sha256
            if moment is not None and moment not in moments:
                self._blobs.remove(moment)
        size, reached = 0, True  # reached: whether the logs from here on lead to the current adapter
        for done in reversed(self.closed):
            if done.log_sha256 is None or done.log_size_bytes is None:
                reached = False
                continue
            if size >= 4 * self.theta.size or not reached:
                if not self._blobs.has(done.log_sha256):
                    break  # this log and all before it were deleted in earlier rounds
                self._blobs.remove(done.log_sha256)
            size += done.log_size_bytes

    def reference(
        self,
        device_adapter_sha256: str | None,
        link_bytes_per_s: float | None = None,
        replay_parameters_per_s: float | None = None,
    ) -> AdapterRef:
        """Return a reference to the current adapter, with a log to replay where that is the cheaper way.

        Args:
            device_adapter_sha256: the adapter that the device has; None: only the bundle's.
            link_bytes_per_s: measured speed of the device's link; None: the way with fewer bytes is taken.
            replay_parameters_per_s: parameters × directions that the device replays per second; None: as above.
        """
        file = BlobRef(self.sha256, 4 * self.theta.size)
        moment = UNSET if self.moment_sha256 is None else BlobRef(self.moment_sha256, file.size_bytes)
        base = device_adapter_sha256 or self.initial_sha256
        missed = self._missed(base, file.size_bytes)
        if not missed:
            return AdapterRef(file, None, None, moment=moment)
        size = sum(done.log_size_bytes or 0 for done in missed)
        if link_bytes_per_s is not None and replay_parameters_per_s is not None:
            replay_s = sum(done.terms for done in missed) * self.theta.size / replay_parameters_per_s
            if size / link_bytes_per_s + replay_s >= file.size_bytes / link_bytes_per_s:
                return AdapterRef(file, None, None, moment=moment)
        first = missed[0].index
        previous = self.closed[first - 1].base_sha256 if self._momentum and first > 0 else None
        before = None if first == 0 else self.closed[first - 1].figures.moment_sha256
        return AdapterRef(file, self._log(base, missed), base, previous, moment, UNSET if before is None else before)

    def _missed(self, base: str, most_bytes: int) -> list[ClosedRound]:
        """Return the rounds from an adapter to the current one; none where the file is smaller than their logs."""
        if base == self.sha256:
            return []
        missed: list[ClosedRound] = []
        size = 0
        for done in reversed(self.closed):
            if done.log_size_bytes is None:
                return []  # a round with backprop devices has no log, only the file
            size += done.log_size_bytes
            if size >= most_bytes:
                return []
            missed.insert(0, done)
            if done.base_sha256 == base:
                return missed
        return []

    def _log(self, base: str, missed: Sequence[ClosedRound]) -> BlobRef | None:
        """Return one blob with the logs of all these rounds; None: one of them was deleted or is damaged."""
        logged = [BlobRef(done.log_sha256, done.log_size_bytes or 0) for done in missed if done.log_sha256 is not None]
        if len(logged) == 1:
            return logged[0]
        if base not in self._merged:
            try:
                found = [
                    None if self._blobs.whole(log.sha256) is None else self._blobs.read(log.sha256) for log in logged
                ]
                if None in found:
                    return None
                logs = [log for data in found if data is not None for log in decode_chain(data)]
                self._merged[base] = self._blobs.add(encode_chain(logs))
            except ShortageError as error:
                _LOG.error("devices get the adapter's file instead of its logs: %s", error)
                return None
        return self._merged[base]
