"""Signs releases: what the server has taken may be loaded by the fleet's devices, by the release key's signature."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import threading
import time
from typing import TYPE_CHECKING, Annotated

import msgspec

from edge_runtime.errors import storage_error, wall
from edge_runtime.files.aside import set_aside
from edge_runtime.files.atomic import write_atomically
from edge_runtime.releases.statement import RELEASE_TAG, Release, ReleaseError, encode
from edge_runtime.values import Sha256, Strict
from server.trust.release_keys import open_release_keys

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from edge_runtime.releases.statement import Kind
    from server.trust.folder import Trust
    from server.trust.release_keys import ReleaseKeys

SERIALS = "release-serials.json"
_LOG = logging.getLogger(__name__)


class _Last(Strict, frozen=True):
    """The newest release of a kind and name: its serial, and what it was of."""

    serial: Annotated[int, msgspec.Meta(ge=1, le=2**53)]
    sha256: Sha256


def sign_release(
    trust: Trust,
    kind: Kind,
    name: str,
    sha256: str,
    clock_s: Callable[[], float] = time.time,
    least: int = 1,
) -> bytes:
    """Return a signed release; it is the newest of its kind and name from then on.

    Its serial is that of the last one where the content is the same, else a higher one: at least the clock's seconds,
    so that it ascends too where ``release-serials.json`` was lost or restored from a backup.

    Args:
        trust: the fleet's keys.
        kind: what is released.
        name: what has versions; devices compare serials of one kind and name.
        sha256: of a bundle's manifest.json, or of the file.
        clock_s: the time, in seconds since 1970.
        least: a last serial below this one is not kept, although the content is the same.

    Raises:
        ReleaseError: the name cannot be one.
        StorageError: a key is damaged, or the serial cannot be written.
    """
    now_s = clock_s()
    with _locked(trust.folder):
        serials = _read_serials(trust.folder / SERIALS)
        last = serials.get(f"{kind} {name}")
        if last is None or last.sha256 != sha256 or last.serial < least:
            serial = max(1 if last is None else last.serial + 1, int(now_s))
            last = _Last(serial, sha256)
            release = _signed(trust, kind, name, last, now_s)
            write_atomically(trust.folder / SERIALS, msgspec.json.encode({**serials, f"{kind} {name}": last}))
            _LOG.info("%s %s (%s) is released with serial %d", kind, name, sha256[:12], serial)
            return release
    return _signed(trust, kind, name, last, now_s)


class ReleaseBook:
    """What a running server has taken, and signs when a device asks. Safe to use from several threads.

    Jobs with several bundles of one name may run side by side: all that were taken since the start carry the newest
    serial of their name, so that a device which does one job's plan and then another's refuses neither. Keys are read
    when they are used: a rotation acts on a running server.

    Where several machines may be the server in turn, another one may have given the same content a higher serial than
    this one's folder knows: what is taken gets a serial that is not older than the book, by the clock that they share.

    Args:
        trust: the fleet's keys.
        clock_s: the time, in seconds since 1970.
        is_shared: whether another machine may have been the server meanwhile.
    """

    def __init__(self, trust: Trust, clock_s: Callable[[], float] = time.time, *, is_shared: bool = False) -> None:
        self._trust, self._clock_s = trust, clock_s
        self._least = int(clock_s()) if is_shared else 1
        self._taken: dict[str, tuple[Kind, str]] = {}
        self._lock = threading.Lock()

    def take(self, kind: Kind, name: str, sha256: str) -> None:
        """Release something that the operator has given to the server. Raises as sign_release."""
        with self._lock:
            sign_release(self._trust, kind, name, sha256, self._clock_s, self._least)
            self._taken[sha256] = (kind, name)

    def release_of(self, sha256: str) -> bytes | None:
        """Return the signed release of what was taken; None: it was not.

        Raises:
            StorageError: a key or the serials are damaged.
        """
        with self._lock:
            taken = self._taken.get(sha256)
            if taken is None:
                return None
            kind, name = taken
            with _locked(self._trust.folder):
                last = _read_serials(self._trust.folder / SERIALS).get(f"{kind} {name}")
            if last is None:  # the file was lost while the server ran
                return sign_release(self._trust, kind, name, sha256, self._clock_s, self._least)
            return _signed(self._trust, kind, name, _Last(last.serial, sha256), self._clock_s())

    def key_list(self) -> bytes:
        """Return the signed list of release keys. Raises as open_release_keys."""
        return _keys(self._trust, self._clock_s()).key_list


def _keys(trust: Trust, now_s: float) -> ReleaseKeys:
    return open_release_keys(trust.folder, trust.fleet, now_s)


def _signed(trust: Trust, kind: Kind, name: str, last: _Last, now_s: float) -> bytes:
    keys = _keys(trust, now_s)
    with wall(lambda cause: ReleaseError("malformed", f"{kind} {name!r} cannot be released: {cause}", "rename it")):
        release = msgspec.convert(
            {
                "v": 1,
                "kind": kind,
                "fleet": trust.fleet,
                "name": name,
                "sha256": last.sha256,
                "serial": last.serial,
                "keys_serial": keys.listed.serial,
                "made_at_s": int(now_s),
            },
            Release,
        )
    return keys.signed(RELEASE_TAG, encode(release))


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process at a time give out serials."""
    path = folder / f"{SERIALS}.lock"
    try:
        lock = path.open("w")
    except OSError as error:
        raise storage_error(error, path) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _read_serials(path: Path) -> dict[str, _Last]:
    """Return the serials; a damaged file is set aside, and the clock's seconds are beyond what it had."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, _Last])
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise storage_error(error, path) from error
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        set_aside(path, f"{path} is damaged ({type(error).__name__}); serials go on from this machine's clock")
        return {}
