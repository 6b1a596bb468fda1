"""Why a broker does not let a session in: its limit of connections, a password, or a port that is none of a broker."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_runtime.network.cause import Cause
from edge_runtime.network.causes import (
    CONNECTION_LIMITS,
    CUT,
    FILE_LIMITS,
    NOT_AUTHORISED,
    cause_of_error,
    refusal_cause,
)

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


def answered(code: int, words: str, place: Place, user: str | None, identity: str, connected: int) -> Cause:
    """Return the cause of a login that the broker has answered with a refusal; see causes.refusal_cause.

    RabbitMQ answers "not authorised" where a virtual host or a user has as many connections as it may have.

    Args:
        code: see causes.refusal_cause.
        words: the code's name.
        place: the broker.
        user: the user name that was sent; None: none.
        identity: the client id that was sent.
        connected: sessions of this process that are connected: the broker lets others in, with the same rights.
    """
    if code == NOT_AUTHORISED and connected > 0:
        return _full(f"{place} authorises no further session, while others stay ({words})")
    return refusal_cause(code, words, place, user=user, identity=identity)


def unanswered(error: BaseException | None, place: Place, connected: int) -> Cause:
    """Return the cause of a connection that ended before the broker had answered the login.

    Brokers that have as many connections as they may take close further ones without a word (mosquitto), or leave them
    without an answer (RabbitMQ, at its limit of open files).

    Args:
        error: what the socket or ``ssl`` raised, or SILENCE; None: the broker closed the connection.
        place: the broker.
        connected: sessions of this process that are connected: the broker lets others in.
    """
    cause = cause_of_error(error or ConnectionResetError(), place)
    if connected > 0 and cause.kind == "silent":
        return _full(
            f"{place} takes further connections and never answers them, while others stay", ", or too much to do"
        )
    if connected > 0 and (error is None or isinstance(error, CUT)):
        return _full(f"{place} closes further connections without an answer, while others stay")
    return cause


def _full(finding: str, otherwise: str = "") -> Cause:
    return Cause(
        "unavailable",
        f"{finding}: it has as many as it may take{otherwise}",
        f"raise its limit of connections ({CONNECTION_LIMITS}) and its process's limit of open files ({FILE_LIMITS}), "
        "or take fewer --devices; its log says which limit it was",
    )
