"""Keeps what the server has said of software that is too old here, so that ``covey-edge doctor`` can say it too."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from edge_runtime import __version__
from edge_runtime.errors import StorageError, unreadable
from edge_runtime.files.atomic import write_atomically
from edge_runtime.values import Sha256, Strict

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

TOO_OLD_FILE = "too_old.json"


class TooOldNote(Strict, frozen=True):
    """Why there was no work.

    Attributes:
        job: the job that has none for this device.
        bundle_sha256: the bundle that needs newer libraries.
        reason: what is too old, and what to do about it.
        versions: what was installed then, Covey among it; with other versions the note means nothing any more.
    """

    job: str
    bundle_sha256: Sha256
    reason: str
    versions: dict[str, str]


def with_covey(versions: Mapping[str, str]) -> dict[str, str]:
    """Return versions of libraries with that of Covey, which a server may have found too old as well."""
    return {**versions, "covey": __version__}


def write_too_old(root: Path, note: TooOldNote) -> None:
    """Keep a note in a state directory, in place of the last one.

    Raises:
        StorageError: it cannot be written.
    """
    root.mkdir(parents=True, exist_ok=True)
    write_atomically(root / TOO_OLD_FILE, msgspec.json.encode(note))


def read_too_old(root: Path, versions: Mapping[str, str]) -> TooOldNote | None:
    """Return the note that holds for what is installed now; None: there is none, or something has been replaced.

    Args:
        root: the state directory.
        versions: the libraries that are installed, by name.

    Raises:
        StorageError: the note cannot be read.
    """
    path = root / TOO_OLD_FILE
    try:
        note = msgspec.json.decode(path.read_bytes(), type=TooOldNote)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unreadable(error, StorageError(f"cannot read {path}", "check its owner and permissions")) from error
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise StorageError(f"{path} is damaged: {error}", "remove it: the server says it again") from error
    return note if note.versions == with_covey(versions) else None
