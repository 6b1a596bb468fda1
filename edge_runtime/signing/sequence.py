"""Numbers that are never used twice, also after a power cut: reserved on disk in blocks, before they are used."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from edge_runtime.errors import StorageError, storage_error, unreadable
from edge_runtime.files.aside import set_aside
from edge_runtime.files.atomic import write_atomically
from edge_runtime.files.checked import decode_checked, encode_checked
from edge_runtime.files.versioned import VersionedFormat
from edge_runtime.protocol.signed import LARGEST_SEQUENCE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SEQUENCE_FILE = "message-sequence.json"
BLOCK = 1000
"""Numbers that one write to the disk reserves; a restart skips what is left of them."""


class _Reserved(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    reserved: Annotated[int, msgspec.Meta(ge=0, le=LARGEST_SEQUENCE)]
    v: Literal[1] = 1


class _DamagedError(StorageError):
    """The file cannot be used."""


_FORMAT = VersionedFormat(
    "the file of message numbers",
    1,
    decode_checked,
    _DamagedError,
    hint="it is set aside, and numbers begin at this machine's clock",
    newer_hint="it is set aside, and numbers begin at this machine's clock",
)


def clock_us() -> int:
    """Return the microseconds since 1970, by this machine's clock."""
    return time.time_ns() // 1000


class SequenceStore:
    """Hands out ascending numbers. Safe to use from several threads, and by one process at a time.

    Where the file is missing or damaged, numbers begin at ``begin_at``: microseconds are far ahead of any number that
    was used before, because no member sends a million messages a second. So a lost file, or a state directory that
    was restored without it, does not make a member repeat itself; its clock matters then alone, and for no check.

    A member that several machines may be in turn, each with a file of its own, begins at ``begin_at`` too, if that is
    ahead of its file; the machines share its clock.

    Args:
        path: the file.
        begin_at: where numbers begin without a file.
        is_shared: whether the member may have been on another machine meanwhile.
    """

    def __init__(self, path: Path, begin_at: Callable[[], int] = clock_us, *, is_shared: bool = False) -> None:
        self._path, self._begin_at, self._is_shared = path, begin_at, is_shared
        self._next: int | None = None
        self._reserved = 0
        self._lock = threading.Lock()

    def take(self) -> int:
        """Return the next number; what it is taken from is on disk.

        Raises:
            StorageError: the file cannot be read or written; no number was used.
        """
        with self._lock:
            number = self._read() if self._next is None else self._next
            if number >= self._reserved:
                reserved = number + BLOCK
                write_atomically(self._path, encode_checked(_Reserved(reserved)))
                self._reserved = reserved
            self._next = number + 1
            return number

    def _read(self) -> int:
        """Return the number from which none is used: what was reserved before is skipped."""
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return max(self._begin_at(), 0)
        except IsADirectoryError:
            return max(self._begin_at(), 0)  # write_atomically sets it aside
        except OSError as error:
            raise unreadable(error, storage_error(error, self._path)) from error
        try:
            found: _Reserved = _FORMAT.read(data, _Reserved)
        except _DamagedError as error:
            set_aside(self._path, f"{self._path}: {error.what}")
            return max(self._begin_at(), 0)
        return max(found.reserved, self._begin_at()) if self._is_shared else found.reserved
