"""Objects of a bucket that nobody wants any more: removed in the background, many by one request, and never forgotten.

They are noted in a file until they are gone, so that the next server of this state directory goes on with them.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from pathlib import Path

_LOG = logging.getLogger(__name__)
_LINE = re.compile(r"([-+])([0-9a-f]{64})")
_UNWANTED, _WANTED = "-", "+"


class Removes(Protocol):
    """What removes objects: a bucket."""

    def try_to_remove(self, keys: Sequence[str]) -> bool:
        """Remove objects, if the bucket answers at once; return whether they are gone."""


class Removals:
    """The objects of a folder of a bucket that are to be removed. Safe to use from several threads.

    Where the bucket is away they stay, and are tried again with the next one. Before each request this server asks
    whether it still has the ledger alone: what another server has written since must stay.

    Args:
        bucket: removes them.
        folder: the folder's name below the bucket's prefix.
        note: the file in which they are noted.
        is_ours: whether no other server may have written what is to be removed.
        most: objects that one request removes.
    """

    def __init__(self, bucket: Removes, folder: str, note: Path, is_ours: Callable[[], bool], most: int) -> None:
        self._bucket, self._folder, self._note, self._is_ours, self._most = bucket, folder, note, is_ours, most
        self._unwanted: dict[str, None] = {}  # a set that keeps the order
        self._going: frozenset[str] = frozenset()
        self._is_at_work = False
        self._changed = threading.Condition()

    def __contains__(self, sha256: str) -> bool:
        """Whether an object is to be removed, or just being removed."""
        with self._changed:
            return sha256 in self._unwanted or sha256 in self._going

    def add(self, sha256: str) -> None:
        """Remove an object soon; returns at once."""
        with self._changed:
            if sha256 not in self._unwanted:
                self._unwanted[sha256] = None
                self._write(_UNWANTED, sha256)
            self._work()

    def keep(self, sha256: str) -> None:
        """Remove an object not: it is wanted again. Where it is just being removed, wait until it is gone."""
        with self._changed:
            self._changed.wait_for(lambda: sha256 not in self._going)
            if self._unwanted.pop(sha256, self) is None:  # also where it could not be removed
                self._write(_WANTED, sha256)

    def go_on(self, wanted: Callable[[], Collection[str]]) -> None:
        """Go on with what an earlier server of this state directory has left.

        Args:
            wanted: returns the names that are wanted now, whatever was said before; asked only where something is left.

        Raises:
            StorageError: the ledger cannot be read.
        """
        left = self._noted()
        if not left:
            return
        kept = wanted()
        with self._changed:
            self._unwanted |= dict.fromkeys(sha256 for sha256 in left if sha256 not in kept)
            self._compact()
            if self._unwanted:
                _LOG.info("going on to remove %d objects that an earlier server has left", len(self._unwanted))
                self._work()

    def settle(self, limit_s: float) -> bool:
        """Wait until the thread at work has tried all of them; return whether none is left."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_at_work, limit_s)
            return not self._unwanted and not self._going

    def _work(self) -> None:
        """Begin a thread, where none is at work; with the lock held."""
        if not self._is_at_work:
            self._is_at_work = True
            threading.Thread(target=self._remove, name="blob-removal", daemon=True).start()

    def _remove(self) -> None:
        is_gone = True
        while True:
            with self._changed:
                if is_gone and self._going:
                    self._compact()
                elif not is_gone:
                    self._unwanted = {**dict.fromkeys(self._going), **self._unwanted}
                self._going = frozenset()
                batch = list(self._unwanted)[: self._most]
                if not is_gone or not batch:
                    self._is_at_work = False
                    self._changed.notify_all()
                    return
                for sha256 in batch:
                    del self._unwanted[sha256]
                self._going = frozenset(batch)
                self._changed.notify_all()
            is_gone = self._tried(batch)

    def _tried(self, batch: Sequence[str]) -> bool:
        try:
            return self._is_ours() and self._bucket.try_to_remove([f"{self._folder}/{sha256}" for sha256 in batch])
        except Exception:  # noqa: BLE001 they stay noted, and are tried again with the next one
            _LOG.exception("objects could not be removed by a fault of Covey; please report it")
            return False

    # -- the note ---------------------------------------------------------------------------------------------------

    def _write(self, sign: str, sha256: str) -> None:
        """Append a line; the end of the machine may lose it, which costs space only."""
        with contextlib.suppress(OSError):  # of a full disk: the object is removed all the same
            self._note.parent.mkdir(parents=True, exist_ok=True)
            with self._note.open("a", encoding="ascii") as file:
                file.write(f"{sign}{sha256}\n")

    def _compact(self) -> None:
        with contextlib.suppress(OSError):
            if not self._unwanted:
                self._note.unlink(missing_ok=True)
            else:
                self._note.write_text("".join(f"{_UNWANTED}{sha256}\n" for sha256 in self._unwanted), encoding="ascii")

    def _noted(self) -> list[str]:
        try:
            lines = self._note.read_text(encoding="ascii").splitlines()
        except (OSError, UnicodeDecodeError):
            return []
        left: dict[str, None] = {}
        for found in filter(None, map(_LINE.fullmatch, lines)):
            if found[1] == _UNWANTED:
                left[found[2]] = None
            else:
                left.pop(found[2], None)
        return list(left)
