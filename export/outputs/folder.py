"""The folder that an output is written to: it appears when it is complete, and never replaces another one."""

from __future__ import annotations

import contextlib
import shutil
from typing import TYPE_CHECKING

from edge_runtime.errors import StorageError, storage_error
from edge_runtime.files.atomic import sync_directory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Give a folder to write to; it gets its name when the context ends without an error, and is removed otherwise.

    Raises:
        StorageError: ``out`` exists, or cannot be written.
    """
    if out.exists():
        raise StorageError(f"{out} exists", "name another folder, or move it away; results are never overwritten")
    partial = out.with_name(out.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        partial.replace(out)
        sync_directory(out.parent)
    except OSError as error:
        raise storage_error(error, out) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
