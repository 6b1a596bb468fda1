"""Puts damaged files aside under a name of their own, so that work goes on and nothing is lost."""

from __future__ import annotations

import logging
import shutil
from typing import TYPE_CHECKING

from edge_runtime.errors import storage_error

if TYPE_CHECKING:
    from pathlib import Path

_LOG = logging.getLogger(__name__)
_MOST_KEPT = 9
BAD = ".bad"
"""What is appended to the name of a damaged file: ``journal.json.bad``, then ``journal.json.bad.2`` and so on."""


def set_aside(path: Path, why: str) -> Path:
    """Rename a damaged file or folder to the first free ``.bad`` name, and say so in the log.

    Where all nine names are taken, the oldest of them is replaced.

    Args:
        path: the file or folder.
        why: what is wrong with it, for the log.

    Returns:
        Its new path.

    Raises:
        StorageError: it cannot be renamed.
    """
    names = [path.with_name(f"{path.name}{BAD}")]
    names += [path.with_name(f"{path.name}{BAD}.{number}") for number in range(2, _MOST_KEPT + 1)]
    try:
        target = next((name for name in names if not _is_there(name)), None)
        if target is None:
            target = min(names, key=lambda name: name.lstat().st_mtime_ns)
            remove(target)
        path.replace(target)
    except OSError as error:
        raise storage_error(error, path) from error
    _LOG.warning("%s; it is set aside as %s", why, target)
    return target


def is_set_aside(path: Path) -> bool:
    """Whether a path is one that set_aside has made."""
    return f"{BAD}." in f"{path.name}."


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with all that is in it; a path that is not there is no error.

    Raises:
        OSError: it cannot be removed.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _is_there(path: Path) -> bool:
    return path.exists() or path.is_symlink()
