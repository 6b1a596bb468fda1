"""Where a server listens for commands on its own machine."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

TOKEN_FILE = "api-token"  # noqa: S105 a file's name
_SOCKET = "api.sock"
_LONGEST_PATH = 100
"""Linux allows 107 bytes for a socket's path."""


def socket_path(state_dir: Path) -> Path:
    """Return the path of the socket of the server that uses a state directory.

    It is in the state directory; where that path is too long for a socket, in the folder of temporary files.
    """
    path = state_dir.resolve() / _SOCKET
    if len(os.fsencode(path)) <= _LONGEST_PATH:
        return path
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"covey-{os.getuid()}-{name}" / _SOCKET
