"""Errors of the device side and of the shared contracts.

CoveyError                exit code 1
├── ConfigError           3   a configuration file, a flag or the environment
│   └── ProfileError      3   a device's profile: not valid, of another bundle
├── DataError             4   the user's own rows
├── BundleError           5   a bundle or manifest: missing, altered, extra, another version
├── ProtocolError         6   a message: another version, wrong types, out of bounds
├── NetworkError          7   broker or server cannot be reached, a transfer broke off
├── StorageError          8   disk full, directory not writable
├── TrainingError         9   a loss or scalar that is not finite, a replay that does not match its hash
├── EnrolmentError       12   a device may not join the fleet, or not renew its certificate
└── FaultError           70   an exception that nobody expected: a fault of Covey

Exit code 2 is argparse's: wrong usage. The server adds 11 (job), the exporter 10 (export). The codes are stable.

What comes from outside (messages, uploads, files) is decoded behind a wall: any exception becomes the border's own
error, because a list of exception types is never complete (msgspec, for one, raises RecursionError).
"""

from __future__ import annotations

import contextlib
import errno
import re
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_LONGEST_CAUSE = 300
"""Characters of a foreign exception's text that a message quotes."""
_USER = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*:/{0,2})[^\s/][^\s]*@")
_DISK_HINTS = {
    errno.ENOSPC: "free some space and start again; nothing was lost",
    errno.EDQUOT: "free some of this user's space, or have its quota raised; nothing was lost",
    errno.EROFS: "mount it writable (a worn-out SD card turns read-only by itself), or use a directory on another disk",
    errno.EIO: "the disk may be failing: look into dmesg, save what is on it, and use another one",
    errno.ENOENT: "check that the path exists, and that its disk is mounted",
    errno.EACCES: "check the directory's owner and permissions",
    errno.EPERM: "check the directory's owner and permissions",
}
_NETWORK = (
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.ECONNABORTED,
    errno.EPIPE,
    errno.ETIMEDOUT,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
    errno.ENETDOWN,
)
_SHORTAGE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class CoveyError(Exception):
    """An error that a person can act on.

    Args:
        what: what is wrong; names the thing.
        hint: what to do about it; names the command or setting.
    """

    exit_code: ClassVar[int] = 1
    subject: ClassVar[str] = "error"
    details: Mapping[str, object] = MappingProxyType({})
    """What ``--format json`` prints beside the error."""

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.what}\n  what to do: {self.hint}" if self.hint else self.what

    @property
    def public(self) -> str:
        """The text that a device may send to the server; it never quotes private rows."""
        return str(self)


class ConfigError(CoveyError):
    """A configuration file, a flag or the environment is wrong."""

    exit_code = 3
    subject = "configuration"


class DataError(CoveyError):
    """The user's own rows are wrong; the message names the file and the line.

    Args:
        what: see CoveyError. It may quote the rows, so it stays on the device.
        hint: see CoveyError.
        facts: counts and line numbers only: all that may leave the device.
    """

    exit_code = 4
    subject = "data"

    def __init__(self, what: str, hint: str = "", facts: str = "its rows are unusable") -> None:
        super().__init__(what, hint)
        self.facts = facts

    @property
    def public(self) -> str:
        """The counts and line numbers, without a word of the rows."""
        return f"{self.facts}\n  what to do: run covey-edge data check on the device"


class BundleError(CoveyError):
    """A bundle or its manifest is missing something, was altered, or is of another version."""

    exit_code = 5
    subject = "bundle"


class ProtocolError(CoveyError):
    """A message is of another version, has wrong types, or is out of bounds."""

    exit_code = 6
    subject = "protocol"


class NetworkError(CoveyError):
    """The broker or the server cannot be reached, or a transfer broke off."""

    exit_code = 7
    subject = "network"


class ProfileError(ConfigError):
    """A device's profile is not valid, or belongs to another bundle."""


class UpdateError(ConfigError):
    """A new version of Covey cannot be installed or switched to; the one that runs is as it was."""


class StorageError(CoveyError):
    """The disk is full, or a directory cannot be written."""

    exit_code = 8
    subject = "storage"


class ShortageError(StorageError):
    """This process has no file descriptor left: what failed may succeed later, and what it read may be whole."""


class TrainingError(CoveyError):
    """A loss or a scalar is not finite, or a replay does not end on its hash."""

    exit_code = 9
    subject = "training"


class EnrolmentError(CoveyError):
    """A device may not join the fleet, or not renew its certificate.

    Args:
        what: see CoveyError.
        hint: see CoveyError.
        is_guess: whether the sender did not know the token's secret, and may be guessing.
    """

    exit_code = 12
    subject = "joining the fleet"

    def __init__(self, what: str, hint: str = "", *, is_guess: bool = False) -> None:
        super().__init__(what, hint)
        self.is_guess = is_guess


class FaultError(CoveyError):
    """An exception that nobody expected: a fault of Covey, not of its user.

    Args:
        error: the exception. Its text may quote private rows, so only its kind is public.
    """

    exit_code = 70
    subject = "fault of Covey"

    def __init__(self, error: Exception) -> None:
        super().__init__(f"this is a fault of Covey ({cause_of(error)})", "please report it")
        self._kind = type(error).__name__

    @property
    def public(self) -> str:
        """The kind of the exception, without its text."""
        return f"this is a fault of Covey ({self._kind})\n  what to do: look into the device's log and report it"


def cause_of(error: Exception) -> str:
    """Return an exception in a few words, on one line."""
    if isinstance(error, RecursionError):
        return "it nests too deeply"
    if isinstance(error, MemoryError):
        return "it needs more memory than is free"
    text = without_user(" ".join(str(error)[: 10 * _LONGEST_CAUSE].split()))
    if not text:
        return type(error).__name__
    return text if len(text) <= _LONGEST_CAUSE else f"{text[:_LONGEST_CAUSE]}…"


def without_user(text: str) -> str:
    """Return a text with … for what stands before the host in addresses: it may be a password.

    A password may have any character but a space, so everything up to the last @ of the word is left out.
    """
    return _USER.sub(r"\1…@", text)


@contextlib.contextmanager
def wall(border_error: Callable[[str], CoveyError]) -> Iterator[None]:
    """Turn any exception in the block into the border's own error; a CoveyError passes as it is.

    It belongs around code that decodes bytes which somebody else wrote, and around nothing else.

    Args:
        border_error: makes the error; its argument is the cause in a few words.

    Raises:
        CoveyError: what ``border_error`` returns.
    """
    try:
        yield
    except CoveyError:
        raise
    except Exception as error:
        raise border_error(cause_of(error)) from error


def as_exception(caught: BaseException) -> Exception:
    """Return what may end a task and not its process: a panic of a library in Rust, which is no Exception, is one.

    Raises:
        BaseException: ``caught`` itself, where it asks the process to end, as KeyboardInterrupt does.
    """
    if isinstance(caught, Exception):
        return caught
    if type(caught).__name__ != "PanicException":
        raise caught
    made = RuntimeError(f"a library panicked: {caught}")
    made.__cause__ = caught
    return made


def as_covey_error(error: Exception) -> CoveyError:
    """Return the error that a person is shown for any exception.

    A full disk, a missing permission and too little memory belong to the machine, everything else to Covey.
    """
    if isinstance(error, CoveyError):
        return error
    if isinstance(error, MemoryError):
        return TrainingError(
            "this machine has too little free memory for it",
            "use a smaller batch or a shorter max_tokens, or free some memory",
        )
    if isinstance(error, OSError) and error.errno in _NETWORK:
        return NetworkError(f"a connection failed: {error.strerror or error}", "covey-edge doctor looks for the cause")
    if isinstance(error, OSError) and error.errno is not None:
        return system_error(error)
    return FaultError(error)


def exit_codes() -> dict[int, str]:
    """Return the exit codes of the sides that are imported, ascending, each with its meaning."""
    found = {0: "done", 2: "usage"}
    families = CoveyError.__subclasses__()
    found |= {family.exit_code: family.subject for family in families}
    return dict(sorted(found.items()))


def system_error(error: OSError) -> StorageError:
    """Return the StorageError of an OSError that names its own path, or none."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return ShortageError(
            "this process has no file descriptor left", "raise the limit (ulimit -n, or LimitNOFILE in a systemd unit)"
        )
    if error.errno == errno.ENOMEM:
        return ShortageError("this machine has too little free memory for it", "free some memory, and start again")
    if error.errno == errno.ENOSPC:
        return storage_error(error, error.filename or "a file")
    where = f"{error.filename}: " if error.filename is not None else ""
    hint = _DISK_HINTS.get(error.errno or 0, "check that the path exists, its owner, and its permissions")
    return StorageError(f"{where}{error.strerror or error}", hint)


def unreadable(error: OSError, otherwise: CoveyError) -> CoveyError:
    """Return the error of a file that cannot be read: ``otherwise``, unless descriptors or memory are short.

    In a shortage the file may be whole: nobody must take it for damaged and remove it.
    """
    return system_error(error) if error.errno in _SHORTAGE else otherwise


def storage_error(error: OSError, path: object) -> StorageError:
    """Return the StorageError of an OSError on a path, with a hint."""
    if error.errno in _SHORTAGE:
        return system_error(error)
    hint = _DISK_HINTS.get(error.errno or 0, "check the directory's owner and permissions")
    if error.errno == errno.ENOSPC:
        return StorageError(f"disk full while writing {path}", hint)
    return StorageError(f"cannot write {path}: {error.strerror or error}", hint)
