"""Asks the server's joining side whether this device is a member: the broker's side says nothing when it hangs up."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from edge_runtime.errors import CoveyError, EnrolmentError
from edge_runtime.network.cause import Cause
from edge_runtime.trust.exchange import JoinServer, trusting
from edge_runtime.trust.folder import CERT, KEY, IdentityFolder
from edge_runtime.trust.identity import read_identity
from edge_runtime.trust.keys import certificate_pem

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_LOG = logging.getLogger(__name__)
_TIMEOUT_S = 5.0
_AGAIN_S = 10.0
_TURNED_AWAY = frozenset({"closed", "client-certificate-refused", "not-authorised", "password-missing"})
"""Kinds of causes that may mean that the certificate was revoked."""


def ask_membership(config: Path, timeout_s: float = _TIMEOUT_S) -> str:
    """Ask the joining side about the device with a configuration file, and return the name that it has there.

    Raises:
        ConfigError: the device has not joined.
        EnrolmentError: it is no member: its certificate was revoked, has expired, or is not known.
        ClockError, NetworkError, ProtocolError: the joining side does not answer, or not as it should.
        StorageError: a file of the identity is damaged.
    """
    own = read_identity(IdentityFolder(config).path)
    files = (own.folder / CERT, own.folder / KEY)
    server = JoinServer(own.about.join_url, timeout_s, str(files[0]))
    answer = server.ask("/me", None, trusting(certificate_pem(own.authority), files))
    return own.about.edge.name if answer.edge is None else answer.edge.name


class Membership:
    """Says, where a broker has turned this device away, whether that is because it is no member any more.

    Args:
        config: the configuration file; the identity is beside it.
        clock_s: a monotonic clock: the joining side is asked at most every 10 s.
    """

    def __init__(self, config: Path, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._config, self._clock_s = config, clock_s
        self._asked_at: float | None = None
        self._lock = threading.Lock()

    def why(self, cause: Cause) -> Cause | None:
        """Return why the device is no member; None: it is one, or nobody says, or the cause is another one."""
        if cause.kind not in _TURNED_AWAY or not self._may_ask():
            return None
        try:
            ask_membership(self._config)
        except EnrolmentError as error:
            return no_member(error)
        except CoveyError as error:
            _LOG.info("whether this device is a member cannot be asked now: %s", error.what)
        return None

    def _may_ask(self) -> bool:
        now_s = self._clock_s()
        with self._lock:
            if self._asked_at is not None and now_s - self._asked_at < _AGAIN_S:
                return False
            self._asked_at = now_s
            return True


def no_member(error: EnrolmentError) -> Cause:
    """Return the cause of a device whose server says that it is no member."""
    finding = f"this device is no member of its fleet any more: {error.what}"
    kept = "then covey-edge join with it, and start covey-edge run again; rows, adapters and state stay where they are"
    return Cause("no-member", finding, f"{error.hint}; {kept}")
