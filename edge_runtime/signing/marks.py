"""How far a member has heard the others: the last sequence number of each speaker and topic."""

from __future__ import annotations

import bisect
import hashlib
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from edge_runtime.errors import ProtocolError, StorageError, cause_of
from edge_runtime.files.aside import set_aside
from edge_runtime.files.atomic import write_atomically
from edge_runtime.files.checked import decode_checked, encode_checked
from edge_runtime.files.versioned import VersionedFormat
from edge_runtime.protocol.signed import KEY_ID_BYTES, LARGEST_SEQUENCE

if TYPE_CHECKING:
    from pathlib import Path

_LOG = logging.getLogger(__name__)
HEARD_HELLO_FILE = "heard-hello.json"
_REMEMBERED = 32
"""Numbers of the last messages that are remembered one by one, to tell a repeated message from a late one."""


@dataclass
class Mark:
    """The messages of one speaker on one topic.

    Attributes:
        key_id: the key of the last one.
        sequence: the highest number that was accepted; messages below it are refused.
        session: the session of the last one.
        will_taken: whether the last will was accepted after it.
        recent: the last numbers that were accepted, ascending.
        floor: numbers up to this one may have been accepted, and are remembered no more.
    """

    key_id: bytes
    sequence: int
    session: str | None
    will_taken: bool = False
    recent: list[int] = field(default_factory=list)
    floor: int = -1

    def is_repeated(self, sequence: int) -> bool:
        """Whether a number below the highest was accepted before, or is too old to tell."""
        return not self.recent or sequence < self.recent[0] or sequence in self.recent

    def is_unheard(self, sequence: int) -> bool:
        """Whether a number was certainly not accepted before, whatever was accepted after it."""
        return sequence > self.floor and sequence not in self.recent

    def remember(self, sequence: int) -> None:
        """Enter that a number was accepted."""
        bisect.insort(self.recent, sequence)
        if len(self.recent) > _REMEMBERED:
            self.floor = self.recent.pop(0)


class HeardHello(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The last hello that said something new.

    Attributes:
        key_id: the server's key.
        sequence: its number.
        body_sha256: of its body.
    """

    key_id: Annotated[bytes, msgspec.Meta(min_length=KEY_ID_BYTES, max_length=KEY_ID_BYTES)]
    sequence: Annotated[int, msgspec.Meta(ge=0, le=LARGEST_SEQUENCE)]
    body_sha256: str
    v: Literal[1] = 1


_FORMAT = VersionedFormat(
    "the file of the last hello",
    1,
    decode_checked,
    ProtocolError,
    hint="it is set aside",
    newer_hint="it is set aside",
)


class HelloFile:
    """Keeps the last hello's number over restarts: the only message that does not name the listener's own session.

    Written when a hello says something new, which is once for each start and connection of the server, and not when
    the same one is said again. After a restart the same hello is accepted once more, and no older one.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._heard = self._read()

    @property
    def heard(self) -> HeardHello | None:
        """What is on disk, or was to be; None: no hello was heard."""
        return self._heard

    def keep(self, key_id: bytes, sequence: int, body: bytes) -> None:
        """Enter a hello. Where the disk does not take it, it holds until this process ends, and the log says so."""
        body_sha256 = hashlib.sha256(body).hexdigest()
        if self._heard is not None and (key_id, body_sha256) == (self._heard.key_id, self._heard.body_sha256):
            return
        self._heard = HeardHello(key_id, sequence, body_sha256)
        try:
            write_atomically(self._path, encode_checked(self._heard))
        except StorageError as error:
            _LOG.warning("after a restart an older hello of the server could be believed: %s", error)

    def _read(self) -> HeardHello | None:
        try:
            heard: HeardHello = _FORMAT.read(self._path.read_bytes(), HeardHello)
        except FileNotFoundError:
            return None
        except (OSError, ProtocolError) as error:
            try:
                set_aside(self._path, f"{self._path} cannot be used: {cause_of(error)}")
            except StorageError as second:
                _LOG.warning("%s cannot be used: %s; %s", self._path, cause_of(error), second)
            return None
        return heard
