"""The table of causes: why a broker or a server cannot be reached or used, each with its finding and its remedy.

Pure: from an exception of a socket, or a reason code of MQTT, to the cause, in the same words for every command.
"""

from __future__ import annotations

import errno
import socket
import ssl
from dataclasses import replace
from typing import TYPE_CHECKING

from edge_runtime.network.cause import Cause, Place, closed, log_remedy, words_of
from edge_runtime.network.tls_causes import certificate_cause, tls_cause

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

CUT = (ConnectionResetError, BrokenPipeError, ConnectionAbortedError, ssl.SSLEOFError, ssl.SSLZeroReturnError)
"""What is raised where the other end closes the connection."""
CONNECTION_LIMITS = (
    "mosquitto: max_connections; RabbitMQ: rabbitmqctl set_vhost_limits and set_user_limits, max-connections"
)
"""Where brokers are told how many connections they may take."""
FILE_LIMITS = "LimitNOFILE in its systemd unit; RabbitMQ: sockets_limit in rabbitmqctl status"
"""Where a broker's limit of open files is seen: it takes no more connections than that."""
_UNREACHABLE = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN, errno.ETIMEDOUT)
_UNREACHABLE_REMEDY = (
    "check the address, that the machine runs and is in this network, and that no firewall drops the port"
)


def cause_of_error(error: BaseException, place: Place) -> Cause:
    """Return the cause that an exception of a socket or of ``ssl`` stands for."""
    for kinds, cause in _TABLE:
        if isinstance(error, kinds):
            return cause(error, place)
    return Cause("other", f"{place} cannot be used ({words_of(error)})", log_remedy(place))


def _name_cause(error: BaseException, place: Place) -> Cause:
    if isinstance(error, UnicodeError):
        finding = f"{place.host!r} cannot be the name of a machine ({error})"
        return Cause("name-unknown", finding, "correct the name in the address")
    if isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN:
        return Cause(
            "name-unknown",
            f"no name server tells the address of {place.host} now ({words_of(error)})",
            "check this machine's network and name server, or write the IP address instead of the name",
        )
    return Cause(
        "name-unknown",
        f"the name {place.host} is not known ({words_of(error)})",
        "correct the name, or write the IP address; names ending in .local need avahi (libnss-mdns) on this machine",
    )


def _refused(_error: BaseException, place: Place) -> Cause:
    broker = (
        "start the broker, correct the port, or let it listen on the network: mosquitto without a line "
        f"'listener {place.port}' in its configuration listens on localhost only"
    )
    return Cause(
        "refused",
        f"{place.host} is there, but no program takes connections on port {place.port}",
        broker if place.who == "broker" else "start covey serve there, or correct the port",
    )


def _timed_out(error: BaseException, place: Place) -> Cause:
    if "operation timed out" in str(error):  # ssl's words: the connection was made, and a handshake or a read waits
        return silent(place)
    return Cause("unreachable", f"{place} does not answer (timed out)", _UNREACHABLE_REMEDY)


def _other(error: BaseException, place: Place) -> Cause:
    if isinstance(error, OSError) and error.errno in _UNREACHABLE:
        return Cause("unreachable", f"{place} cannot be reached ({words_of(error)})", _UNREACHABLE_REMEDY)
    return Cause("other", f"{place} cannot be used ({words_of(error)})", log_remedy(place))


def _of_certificate(error: BaseException, place: Place) -> Cause:
    assert isinstance(error, ssl.SSLCertVerificationError)  # noqa: S101 see _TABLE
    return certificate_cause(error, place)


def _of_tls(error: BaseException, place: Place) -> Cause:
    assert isinstance(error, ssl.SSLError)  # noqa: S101 see _TABLE
    return tls_cause(error, place)


# The first row that fits is taken: the classes of ``ssl`` are OSErrors, and one of them is a ValueError.
_TABLE: Sequence[
    tuple[type[BaseException] | tuple[type[BaseException], ...], Callable[[BaseException, Place], Cause]]
] = (
    (ssl.SSLCertVerificationError, _of_certificate),
    (CUT, closed),
    (ssl.SSLError, _of_tls),
    ((socket.gaierror, UnicodeError), _name_cause),
    (ConnectionRefusedError, _refused),
    (TimeoutError, _timed_out),
    (OSError, _other),
)


# -- what is no broker, and where it listens ------------------------------------------------------------------------


def not_a_broker(place: Place, what: str) -> Cause:
    """Return the cause of a port that speaks something else than MQTT; ``what``: what it seems to be."""
    return Cause(
        "not-a-broker",
        f"{place} is not an MQTT broker but {what}",
        "give the broker's address: mqtt://host:1883, or mqtts://host:8883 for TLS",
    )


def silent(place: Place) -> Cause:
    """Return the cause of a port that takes connections and says nothing."""
    return Cause(
        "silent",
        f"{place} takes the connection and never answers",
        "check that this is the broker's port; if it is, the broker has as many connections as its limit of open files "
        f"allows ({FILE_LIMITS}): raise it; or it hangs: restart it; or a proxy has no broker behind it",
    )


def local_only(place: Place) -> Cause:
    """Return the cause of a broker that listens on this machine's localhost, asked by another of its addresses."""
    return Cause(
        "local-only",
        f"the program on port {place.port} of this machine listens on localhost only, not on {place.host}",
        f"mosquitto: add 'listener {place.port}' and allow_anonymous or password_file to its configuration; "
        "or write localhost in the address if all members run on this machine",
    )


# -- MQTT -----------------------------------------------------------------------------------------------------------

_BAD_VERSION, _BAD_CLIENT_ID, _BAD_PASSWORD, NOT_AUTHORISED, _BANNED, _BAD_METHOD = 132, 133, 134, 135, 138, 140
_BUSY = (136, 137, 151, 159)


def refusal_cause(code: int, words: str, place: Place, *, user: str | None, identity: str) -> Cause:
    """Return the cause of a login that the broker refused.

    Args:
        code: the reason code of CONNACK in MQTT 5's numbers; paho translates those of 3.1.1.
        words: the code's name.
        place: the broker.
        user: the user name that was sent; None: none.
        identity: the client id that was sent.
    """
    if code in (_BAD_PASSWORD, NOT_AUTHORISED, _BANNED, _BAD_METHOD):
        cause = _password_cause(place, user, words)
        return with_limit(cause) if code == NOT_AUTHORISED else cause
    if code == _BAD_CLIENT_ID:
        return Cause(
            "client-id",
            f"{place} refuses the client id {identity} ({words})",
            "allow it (mosquitto: clientid_prefixes covey-), or choose a shorter name for the device or the fleet",
        )
    if code == _BAD_VERSION:
        return Cause(
            "mqtt-version",
            f"{place} does not speak MQTT 3.1.1 ({words})",
            "let the broker accept MQTT 3.1.1 (mosquitto: accept_protocol_versions 3,4,5)",
        )
    if code in _BUSY:
        return Cause(
            "unavailable",
            f"{place} takes no more connections now ({words})",
            f"wait; if it lasts, raise the broker's limit ({CONNECTION_LIMITS})",
        )
    return Cause("other", f"{place} refuses the login ({words}, code {code})", log_remedy(place))


def with_limit(cause: Cause) -> Cause:
    """Return a cause whose remedy says what else "not authorised" may mean: RabbitMQ says it at its limit, too."""
    return replace(
        cause,
        remedy=f"{cause.remedy}; where all this was right before, the broker may be at its limit of connections, "
        f"for which RabbitMQ has no other answer: raise it ({CONNECTION_LIMITS})",
    )


def _password_cause(place: Place, user: str | None, words: str) -> Cause:
    if user is None and place.own_certificate is not None:
        return Cause(
            "not-authorised",
            f"{place} does not authorise the name in this member's certificate {place.own_certificate} ({words})",
            "make a certificate whose CN the broker knows (mosquitto: use_identity_as_username), "
            "or write user:password@ into the broker's address",
        )
    if user is None:
        return Cause(
            "password-missing",
            f"{place} asks for a user name and a password, and none is configured ({words})",
            "write them into the broker's address: mqtt://user:password@host",
        )
    return Cause(
        "not-authorised",
        f"{place} refuses the user {user!r} or its password ({words})",
        "correct user and password in the broker's address; write @ : / # % in them as %40 %3A %2F %23 %25",
    )


def denied(place: Place, action: str, topic: str, user: str | None) -> Cause:
    """Return the cause of a topic that the broker's access list keeps from this member.

    Args:
        place: the broker.
        action: ``read`` or ``write``, as mosquitto's access lists say.
        topic: the topic, or the filter of topics.
        user: the user name that was sent; None: none.
    """
    nobody = "anonymous clients" if place.own_certificate is None else f"the certificate {place.own_certificate}"
    who = nobody if user is None else f"the user {user!r}"
    asked = "subscribe to" if action == "read" else "publish on"
    return Cause(
        "acl",
        f"the access list of {place} does not let {who} {asked} {topic}",
        f"add 'topic {action} {topic}' for it to the broker's access list (mosquitto: acl_file), and reload the broker",
    )


def oversize(place: Place, size_bytes: int, limit_bytes: int | None) -> Cause:
    """Return the cause of a message that the broker does not take; ``limit_bytes``: of a packet, None: not known."""
    limit = "its limit is not known" if limit_bytes is None else f"its limit is {limit_bytes} bytes"
    return Cause(
        "oversize",
        f"{place} takes no message of {size_bytes} bytes; {limit}",
        "raise the broker's limit (mosquitto: max_packet_size and message_size_limit) to at least 256 kB; or make the "
        "messages smaller: lower steps or the number of perturbations in the job",
    )


def given_up(place: Place, size_bytes: int, times: int, limit_bytes: int | None) -> Cause:
    """Return the cause of a message at which the broker has closed the connection several times."""
    limit = "its limit is not known" if limit_bytes is None else f"its limit is {limit_bytes} bytes"
    is_over = limit_bytes is None or size_bytes > limit_bytes
    return Cause(
        "oversize" if is_over else "acl",
        f"{place} has closed the connection {times} times at this message of {size_bytes} bytes; {limit}",
        oversize(place, size_bytes, limit_bytes).remedy
        if is_over
        else "perhaps the broker's access list forbids its topic: read the broker's log",
    )


_BIG_BYTES = 16_384
_REPEATED = 2


def loss_cause(
    error: BaseException | None, place: Place, *, identity: str, waiting_bytes: int, closed_soon: int
) -> Cause:
    """Return the cause of a connection that worked and broke.

    Args:
        error: what the socket or ``ssl`` raised; None: the broker closed the connection, or fell silent.
        place: the broker.
        identity: this member's client id.
        waiting_bytes: size of the largest message that was sent and not acknowledged; 0: there is none.
        closed_soon: how often in a row, this time included, the broker has closed the connection soon after the login.
    """
    if error is not None and not isinstance(error, CUT):
        return cause_of_error(error, place)
    if waiting_bytes >= _BIG_BYTES and closed_soon >= _REPEATED:
        return Cause(
            "oversize",
            f"{place} closes the connection whenever a message of {waiting_bytes} bytes is sent",
            "raise the broker's limit (mosquitto: max_packet_size) to at least 256 kB",
        )
    if closed_soon >= _REPEATED:
        return Cause(
            "takeover",
            f"{place} has closed the connection {closed_soon} times in a row soon after the login",
            f"see that no second program runs as {identity}: every device needs a name of its own, and a fleet one "
            "server; if there is none, an access list may end the connection: read the broker's log",
        )
    words = "" if error is None else f" ({words_of(error)})"
    return Cause(
        "closed", f"{place} has closed the connection{words}", "it is made again; if it repeats, read the broker's log"
    )
