"""Errors of the device side and of the shared contracts.

CoveyError                exit code 1
├── ConfigError           3   a configuration file, a flag or the environment
│   └── ProfileError      3   a device's profile: not valid, of another bundle
├── DataError             4   the user's own rows
├── BundleError           5   a bundle or manifest: missing, altered, extra, another version
├── ProtocolError         6   a message: another version, wrong types, out of bounds
├── NetworkError          7   broker or server cannot be reached, a transfer broke off
├── StorageError          8   disk full, directory not writable
└── TrainingError         9   a loss or scalar that is not finite, a replay that does not match its hash

Exit code 2 is argparse's: wrong usage. The server adds 11 (job), the exporter 10 (export). The codes are stable.
"""

from __future__ import annotations

import errno
from typing import ClassVar


class CoveyError(Exception):
    """An error that a person can act on.

    Args:
        what: what is wrong; names the thing.
        hint: what to do about it; names the command or setting.
    """

    exit_code: ClassVar[int] = 1
    subject: ClassVar[str] = "error"

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


class StorageError(CoveyError):
    """The disk is full, or a directory cannot be written."""

    exit_code = 8
    subject = "storage"


class TrainingError(CoveyError):
    """A loss or a scalar is not finite, or a replay does not end on its hash."""

    exit_code = 9
    subject = "training"


def exit_codes() -> dict[int, str]:
    """Return the exit codes of the sides that are imported, ascending, each with its meaning."""
    found = {0: "done", 2: "usage"}
    families = CoveyError.__subclasses__()
    found |= {family.exit_code: family.subject for family in families}
    return dict(sorted(found.items()))


def storage_error(error: OSError, path: object) -> StorageError:
    """Return the StorageError of an OSError on a path, with a hint."""
    if error.errno == errno.ENOSPC:
        return StorageError(f"disk full while writing {path}", "free some space and start again; nothing was lost")
    return StorageError(
        f"cannot write {path}: {error.strerror or error}", "check the directory's owner and permissions"
    )
