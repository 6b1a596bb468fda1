"""Where the API listens: a socket that only the server's own user can open; if asked for, a TCP port with a token."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import stat
from typing import TYPE_CHECKING

from edge_runtime.errors import StorageError, storage_error
from edge_runtime.files.atomic import write_atomically
from server.access.operators import LEAST_TOKEN
from server.client.address import TOKEN_FILE, socket_path
from server.web.http_app import serve_on

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from server.access.gate import Gate


@contextlib.contextmanager
def serve_local(app: Gate, state_dir: Path) -> Iterator[Path]:
    """Serve the API on the socket of a state directory until the block ends; yields its path.

    Whoever calls this has the state directory's lock: a socket that is there is of a server that is gone.

    Raises:
        StorageError: the socket cannot be made.
    """
    path = socket_path(state_dir)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.parent != state_dir.resolve():
            _check_own(path.parent)
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        listener.listen(64)
    except OSError as error:
        raise storage_error(error, path) from error
    made = path.stat().st_ino
    try:
        with serve_on(app, listener):
            yield path
    finally:
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_ino == made:  # else it is that of the server which has taken over
                path.unlink()


def _check_own(folder: Path) -> None:
    """Check that nobody else could have put a socket of their own into a folder."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise StorageError(f"{folder} can be written by others", "remove it, and start the server again")


def read_or_make_token(state_dir: Path) -> str:
    """Return the token of the API, from the file ``api-token``, which is made where it is missing (mode 0600).

    Raises:
        StorageError: the file cannot be read or written, or is empty.
    """
    path = state_dir / TOKEN_FILE
    try:
        if not path.exists():
            before = os.umask(0o077)
            try:
                write_atomically(path, secrets.token_urlsafe(32).encode() + b"\n")
            finally:
                os.umask(before)
        token = path.read_text().strip()
    except OSError as error:
        raise storage_error(error, path) from error
    if len(token) < LEAST_TOKEN:
        raise StorageError(f"{path} has no token", "remove it, and start the server again: it makes a new one")
    return token
