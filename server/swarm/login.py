"""Why a broker does not let a session in: its limit of connections, a password, or a port that is none of a broker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_runtime.network.cause import Cause
from edge_runtime.network.causes import CUT, cause_of_error, refusal_cause

if TYPE_CHECKING:
    from edge_runtime.network.cause import Place

FATAL = frozenset(
    {"password-missing", "not-authorised", "client-id", "mqtt-version", "tls-wanted", "tls-unwanted", "tls-version"}
    | {"unknown-authority", "expired", "not-yet-valid", "wrong-name", "no-names", "extension", "weak"}
    | {"client-certificate-missing", "client-certificate-refused", "client-certificate-expired", "name-unknown"}
)
"""Kinds of causes that waiting does not mend: a swarm of which no session gets in stops at once."""
SILENCE = TimeoutError("operation timed out")
"""Stands for a broker that has taken a connection and has not answered the login: causes.cause_of_error knows it."""


def answered(code: int, words: str, place: Place, user: str | None, identity: str) -> Cause:
    """Return the cause of a login that the broker has answered with a refusal; see causes.refusal_cause."""
    return refusal_cause(code, words, place, user=user, identity=identity)


def unanswered(error: BaseException | None, place: Place, connected: int) -> Cause:
    """Return the cause of a connection that ended before the broker had answered the login.

    Brokers that have as many connections as they may take close further ones without a word; mosquitto does so.

    Args:
        error: what the socket or ``ssl`` raised; None: the broker closed the connection.
        place: the broker.
        connected: sessions of this process that are connected: the broker lets others in.
    """
    if error is not None and not isinstance(error, CUT):
        return cause_of_error(error, place)
    if connected == 0:
        return cause_of_error(error or ConnectionResetError(), place)
    return Cause(
        "unavailable",
        f"{place} closes further connections without an answer, while others stay: it has as many as it may take",
        "raise its limit of connections (mosquitto: max_connections; RabbitMQ: connection_max) and its process's limit "
        "of open files (LimitNOFILE in its systemd unit), or take fewer --devices; its log says which limit it was",
    )
