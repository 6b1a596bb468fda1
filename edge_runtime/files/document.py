"""Reads a file that Covey has written for itself: it is there and whole, or it is missing, or it is damaged."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from edge_runtime.errors import unreadable, wall

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_runtime.errors import StorageError

DocumentT = TypeVar("DocumentT")


def read_document(
    path: Path, decode: Callable[[bytes], DocumentT], damaged: Callable[[str], StorageError]
) -> DocumentT | None:
    """Return what a file holds; None: there is no such file.

    Args:
        path: the file.
        decode: returns what its bytes say; whatever it raises is damage.
        damaged: returns the error of a file that says nothing, by the cause.

    Raises:
        StorageError: what ``damaged`` returns; or descriptors or memory are short.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unreadable(error, damaged(error.strerror or str(error))) from error
    with wall(damaged):
        return decode(data)
