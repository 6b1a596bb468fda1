"""Keeps mosquitto's files up to date with who is revoked, where the broker is not the embedded one."""

from __future__ import annotations

import datetime as dt
import logging
import time
from typing import TYPE_CHECKING

from edge_runtime.errors import ConfigError, StorageError
from edge_runtime.files.writable import check_writable
from server.storage import trust_queries
from server.trust.mosquitto import CONFIG, Revoked, write_revoked
from server.web.broker import EMBEDDED

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.serving.options import ServeOptions
    from server.serving.security import Security
    from server.storage.ledger import Ledger

_LOG = logging.getLogger(__name__)
_AGAIN_S = 30.0


def revoked_now(ledger: Ledger, fleet: str) -> Revoked:
    """Return whom a broker must not let in, by the ledger."""
    return Revoked(
        trust_queries.revoked_serials(ledger, fleet, ledger.now_s()), trust_queries.revoked_names(ledger, fleet)
    )


def keep_revoked(options: ServeOptions, security: Security | None, ledger: Ledger) -> Callable[[], None]:
    """Write the list of revoked certificates and the access list, and return what writes them anew after a change.

    Raises:
        ConfigError: --mosquitto without an authority, with the embedded broker, or for a folder without its files.
        StorageError: the folder cannot be written.
    """
    folder = options.mosquitto
    if folder is None:
        return lambda: None
    if security is None or options.broker == EMBEDDED:
        raise ConfigError(
            "--mosquitto is for a fleet with an authority and a broker of its own",
            "covey fleet init, and --broker mqtts://host:8883",
        )
    if not (folder / CONFIG).is_file():
        raise ConfigError(f"there is no {CONFIG} in {folder}", f"covey fleet mosquitto --out {folder}")
    check_writable(folder, "--mosquitto")

    def write(revoked: Revoked) -> None:
        now = dt.datetime.fromtimestamp(ledger.now_s(), dt.timezone.utc)
        write_revoked(security.trust, folder, revoked, now)

    kept = Kept(write)
    kept.refresh(ledger, security.trust.fleet)

    def refresh() -> None:
        try:
            kept.refresh(ledger, security.trust.fleet)
        except StorageError as error:
            _LOG.error("mosquitto is not told who is revoked: %s; trying again", error)

    return refresh


class Kept:
    """Writes who is revoked, once for each change; a failure is tried again after some time.

    Args:
        write: writes it; raises StorageError.
        clock_s: monotonic seconds.
    """

    def __init__(self, write: Callable[[Revoked], None], clock_s: Callable[[], float] = time.monotonic) -> None:
        self._write, self._clock_s = write, clock_s
        self._version: object = None
        self._written: Revoked | None = None
        self._failed_at: float | None = None

    def refresh(self, ledger: Ledger, fleet: str) -> None:
        """Write who is revoked, if that has changed.

        Raises:
            StorageError: a file cannot be written.
        """
        version = ledger.certificates_version
        if version is self._version:
            return
        if self._failed_at is not None and self._clock_s() - self._failed_at < _AGAIN_S:
            return
        revoked = revoked_now(ledger, fleet)
        if revoked != self._written:
            try:
                self._write(revoked)
            except StorageError:
                self._failed_at = self._clock_s()
                raise
            _LOG.info("%d certificates are revoked in mosquitto's files; it reads them on SIGHUP", len(revoked.serials))
        self._version, self._written, self._failed_at = version, revoked, None
