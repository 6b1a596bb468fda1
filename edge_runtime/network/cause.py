"""A cause: why a broker or a server cannot be reached or used, with its finding and its remedy; see causes."""

from __future__ import annotations

import ssl
import time
from dataclasses import dataclass
from typing import Literal

from edge_runtime.errors import CoveyError, EnrolmentError, NetworkError
from edge_runtime.network.http_address import bracketed

Kind = Literal[
    "name-unknown", "refused", "unreachable", "local-only", "silent", "not-a-broker", "closed", "other",
    "password-missing", "not-authorised", "client-id", "mqtt-version", "unavailable", "acl", "takeover", "oversize",
    "tls-version", "tls-wanted", "tls-unwanted", "tls-failed",
    "unknown-authority", "expired", "not-yet-valid", "wrong-name", "no-names", "extension", "weak",
    "client-certificate-missing", "client-certificate-refused", "client-certificate-expired", "http",
    "no-member",
]  # fmt: skip
"""Kinds of causes; the table of ``docs/troubleshooting.md`` has a row for each message."""

WORTH_A_LOOK = frozenset({"refused", "closed", "silent", "tls-failed", "tls-unwanted", "wrong-name", "other"})
"""Kinds that a look at the port can make more exact: see diagnose."""


@dataclass(frozen=True)
class Cause:
    """Why a connection does not work.

    Attributes:
        kind: the row of the table.
        finding: what is wrong; names the place.
        remedy: what to do about it; names the command or setting.
    """

    kind: Kind
    finding: str
    remedy: str

    def error(self, prefix: str = "") -> CoveyError:
        """Return the error that says this cause: an EnrolmentError where the member is none, else a NetworkError."""
        kind = EnrolmentError if self.kind == "no-member" else NetworkError
        return kind(prefix + self.finding, self.remedy)

    def __str__(self) -> str:
        return f"{self.finding}; what to do: {self.remedy}"


@dataclass(frozen=True)
class Place:
    """The other end of a connection.

    Attributes:
        who: ``broker`` or ``server``.
        host: its name or address.
        port: its TCP port.
        own_certificate: the client certificate that is shown to it; None: none.
        now_s: what this machine's clock said, in seconds since 1970; None: ask it.
    """

    who: Literal["broker", "server"]
    host: str
    port: int
    own_certificate: str | None = None
    now_s: float | None = None

    def __str__(self) -> str:
        return f"{bracketed(self.host)}:{self.port}"

    @property
    def clock(self) -> str:
        """This machine's time, as a person reads it."""
        return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(self.now_s))


def words_of(error: BaseException) -> str:
    """Return an exception's own words; its class where it has none."""
    reason = getattr(error, "reason", None)  # an SSLError that Python itself raises has none
    if isinstance(error, ssl.SSLError) and isinstance(reason, str) and reason:
        return reason.replace("_", " ").lower()
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def closed(error: BaseException | None, place: Place) -> Cause:
    """Return the cause of a place that takes the connection and then closes it."""
    words = f" ({words_of(error)})" if error is not None else ""
    remedy = log_remedy(place)
    if place.who == "broker":
        remedy += "; perhaps it has as many connections as it takes: raise its limit (mosquitto: max_connections)"
    return Cause("closed", f"{place} closes the connection without an answer{words}", remedy)


def log_remedy(place: Place) -> str:
    """Return what to do where only the other end knows why."""
    return f"read the {place.who}'s log, it says why; check that {place} is the {place.who}'s port"
