"""Debian's nginx with a configuration, on ports and addresses of a test."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from fleets import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

_PATH = f"{os.environ['PATH']}:/usr/sbin"
_MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
_SNIPPETS = Path(__file__).resolve().parents[2] / "docs" / "brokers"
SNIPPET, BLOBS_SNIPPET = _SNIPPETS / "nginx.conf", _SNIPPETS / "nginx-blobs.conf"


def has_nginx() -> bool:
    """Whether nginx and its module for streams are installed."""
    return shutil.which("nginx", path=_PATH) is not None and _MODULE.is_file()


@contextlib.contextmanager
def nginx(folder: Path, blocks: str, waits_for: tuple[str, int]) -> Iterator[Path]:
    """Run nginx with some blocks until the block ends; yields its error log.

    Args:
        folder: for its files.
        blocks: ``stream { }`` or ``http { }``.
        waits_for: an address and a port that it listens on.
    """
    binary = shutil.which("nginx", path=_PATH)
    assert binary is not None, "nginx is not installed"
    folder.mkdir(parents=True)
    config, log = folder / "nginx.conf", folder / "error.log"
    head = f"load_module {_MODULE};\ndaemon off;\nmaster_process off;\npid {folder}/pid;\nerror_log {log};\n"
    config.write_text(f"{head}events {{ }}\n{blocks}")
    process = subprocess.Popen([binary, "-c", str(config), "-e", str(log)], stderr=subprocess.DEVNULL)

    def listening() -> bool:
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(OSError), socket.create_connection(waits_for, timeout=1):
            return True
        return False

    try:
        wait_for(listening, "nginx", 60.0)
        yield log
    finally:
        process.terminate()
        process.wait()
