"""Folders and addresses of a server, and the lock on its state directory."""

from __future__ import annotations

import contextlib
import fcntl
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_runtime.errors import storage_error
from server.errors import JobError
from server.trust.folder import has_trust
from server.web.broker import EMBEDDED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import IO

    from edge_runtime.network.address import TlsFiles
    from edge_runtime.signing.key_files import ServerKeys
    from server.access.gate import Proxy
    from server.ray_work.options import RayOptions


@dataclass(frozen=True)
class ServeOptions:
    """Folders and addresses of a server; ``covey serve --help`` explains each."""

    state_dir: Path
    fleet: str = "default"
    broker: str = EMBEDDED
    listen: str = "127.0.0.1"
    mqtt_port: int = 1883
    http_port: int = 8080
    public_url: str | None = None
    blob_mirror: str | None = None
    threads: int = 0
    tls: TlsFiles | None = None
    api_port: int | None = None
    api_listen: str = "127.0.0.1"
    api_url: str | None = None
    operators: Path | None = None
    operator_proxy: Proxy | None = None
    join_port: int = 8443
    approve_joins: bool = False
    announce: bool = False
    mosquitto: Path | None = None
    signing: ServerKeys | None = None
    ledger: str | None = None
    standby: bool = False
    blobs: str | None = None
    ray: RayOptions | None = None
    report_connections: int = 1


def default_listen(state_dir: Path) -> str:
    """Return the address that a server listens on: every interface if its listeners take members only."""
    return "0.0.0.0" if has_trust(state_dir) else "127.0.0.1"  # noqa: S104 with TLS and certificates


def default_mqtt_port(state_dir: Path) -> int:
    """Return the embedded broker's port: 8883 is for TLS."""
    return 8883 if has_trust(state_dir) else 1883


@contextlib.contextmanager
def only_one(state_dir: Path, wait: Callable[[], object] | None = None) -> Iterator[None]:
    """Lock the state directory: two servers on one ledger would each aggregate half of a round.

    Args:
        state_dir: the state directory.
        wait: waits a moment while another server has it, and may raise to end that; None: nobody waits.

    Raises:
        JobError: another server uses it, and nobody waits.
        StorageError: it cannot be written.
    """
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        lock = (state_dir / "lock").open("w")
    except OSError as error:
        raise storage_error(error, state_dir) from error
    with lock:
        while not _is_locked(lock):
            if wait is None:
                raise JobError(
                    f"another server uses {state_dir}",
                    "covey job submit hands a job to it; or stop it, or give another --state-dir; "
                    "or wait for its end with --standby",
                )
            wait()
        yield


def _is_locked(lock: IO[str]) -> bool:
    """Whether a file could be locked: nobody else has it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
