"""Looks at what a broker's port really is, after a connection that failed without a reason.

Opens sockets of its own and says hello in MQTT, TLS and HTTP. It never sends a user name or a password: the port may be
anybody's. ``ssl`` and paho report most failures as a connection that was closed; this tells them apart.
"""

from __future__ import annotations

import os
import socket
import ssl
from typing import TYPE_CHECKING

from edge_runtime.network.cause import WORTH_A_LOOK, closed
from edge_runtime.network.causes import CUT, cause_of_error, local_only, not_a_broker, silent
from edge_runtime.network.tls import tls_context
from edge_runtime.network.tls_causes import no_names, tls_unwanted, tls_wanted

if TYPE_CHECKING:
    from edge_runtime.network.address import BrokerAddress, TlsFiles
    from edge_runtime.network.cause import Cause, Place

_TIMEOUT_S = 3.0
_ANSWER_BYTES = 64
_CONNACK = 0x20
_TLS_RECORDS = (b"\x15\x03", b"\x16\x03")
_HTTP_REQUEST = b"GET / HTTP/1.0\r\n\r\n"


def diagnose(address: BrokerAddress, tls: TlsFiles | None, timeout_s: float) -> Cause | None:
    """Return what keeps this machine from talking MQTT to a broker; None: nothing does, up to the login.

    Args:
        address: the broker.
        tls: this member's TLS files.
        timeout_s: how long each attempt may take; there are at most four.

    Raises:
        ConfigError: the TLS files cannot be used.
    """
    place = address.place(tls)
    context = tls_context(tls) if address.tls else None
    try:
        plain = _connect(place, timeout_s)
    except (OSError, UnicodeError) as error:
        if isinstance(error, ConnectionRefusedError) and _listens_locally(place, timeout_s):
            return local_only(place)
        return cause_of_error(error, place)
    with plain:
        if context is None:
            return _judge_plain(_hello(plain), place, timeout_s)
        return _judge_tls(plain, context, place, timeout_s)


def exact(cause: Cause, address: BrokerAddress, tls: TlsFiles | None) -> Cause:
    """Return a cause as it is, or a more exact one where a look at the port finds it; see diagnose."""
    if cause.kind not in WORTH_A_LOOK:
        return cause
    return diagnose(address, tls, _TIMEOUT_S) or cause


def _connect(place: Place, timeout_s: float) -> socket.socket:
    return socket.create_connection((place.host, place.port), timeout_s)


def _listens_locally(place: Place, timeout_s: float) -> bool:
    """Return whether the host is an address of this machine, and the port is open on localhost only."""
    try:
        family, _, _, _, where = socket.getaddrinfo(place.host, 0, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as own:
            own.bind(where)  # works with an address of this machine only
        with socket.create_connection(("localhost", place.port), timeout_s):
            return True
    except OSError:
        return False


# -- one attempt ----------------------------------------------------------------------------------------------------


def _hello(connection: socket.socket) -> bytes | OSError:
    """Say hello in MQTT without a password; return the first bytes of the answer, or what was raised."""
    identity = b"covey-look-" + os.urandom(4).hex().encode()
    body = b"\x00\x04MQTT\x04\x02\x00\x0a" + len(identity).to_bytes(2, "big") + identity
    return _ask(connection, bytes([0x10, len(body)]) + body)


def _ask(connection: socket.socket, question: bytes) -> bytes | OSError:
    """Send a question; return the first bytes of the answer, or what was raised."""
    cut: OSError | None = None
    try:
        connection.sendall(question)
    except OSError as error:
        cut = error  # the other end may have said why before it closed: read on
    try:
        return connection.recv(_ANSWER_BYTES)
    except OSError as error:
        return cut if cut is not None and isinstance(error, CUT) else error


def _judge_plain(answer: bytes | OSError, place: Place, timeout_s: float) -> Cause | None:
    """Return what a port is that was greeted plainly; None: a broker."""
    if isinstance(answer, bytes) and answer:
        return None if answer[0] == _CONNACK else _named(answer, place)
    if _speaks_tls(place, timeout_s):
        return tls_wanted(place)
    if _answers_http(place, timeout_s):
        return not_a_broker(place, "an HTTP server")
    return _unanswered(answer, place)


def _named(answer: bytes, place: Place) -> Cause:
    """Return the cause of a port that answered something else than MQTT."""
    if answer[:2] in _TLS_RECORDS:
        return tls_wanted(place)
    if answer.lower().startswith((b"http/", b"<!doctype html", b"<html")):
        return not_a_broker(place, "an HTTP server")
    first = answer.split(b"\n")[0].decode("ascii", "replace")
    shown = "".join(char if char.isprintable() and char.isascii() else "." for char in first)
    return not_a_broker(place, f"something that answers {shown!r}")


def _unanswered(answer: bytes | OSError, place: Place) -> Cause:
    if isinstance(answer, TimeoutError):
        return silent(place)
    if isinstance(answer, OSError):
        return cause_of_error(answer, place)
    return closed(None, place)


def _judge_tls(plain: socket.socket, context: ssl.SSLContext, place: Place, timeout_s: float) -> Cause | None:
    """Return what a port is that TLS is spoken to; None: a broker."""
    try:
        secured = context.wrap_socket(plain, server_hostname=place.host)
    except ssl.SSLCertVerificationError as error:
        cause = cause_of_error(error, place)
        return no_names(place) if cause.kind == "wrong-name" and _has_no_names(context, place, timeout_s) else cause
    except (*CUT, TimeoutError, ssl.SSLError) as error:
        cause = cause_of_error(error, place)
        return (
            _judge_without_tls(cause, place, timeout_s) if cause.kind in ("closed", "silent", "tls-unwanted") else cause
        )
    except OSError as error:
        return cause_of_error(error, place)
    with secured:
        answer = _hello(secured)
    if isinstance(answer, bytes) and answer:
        return None if answer[0] == _CONNACK else _named(answer, place)
    return _unanswered(answer, place)


def _judge_without_tls(cause: Cause, place: Place, timeout_s: float) -> Cause:
    """Return what a port is that broke off a TLS handshake without a reason: a plain broker, another server."""
    try:
        with _connect(place, timeout_s) as plain:
            answer = _hello(plain)
    except OSError:
        return cause
    if isinstance(answer, bytes) and answer:
        if answer[0] == _CONNACK:
            return tls_unwanted(place)
        return cause if answer[:2] in _TLS_RECORDS else _named(answer, place)
    if _answers_http(place, timeout_s):
        return not_a_broker(place, "an HTTP server")
    return silent(place) if isinstance(answer, TimeoutError) else cause


# -- what else a port may speak -------------------------------------------------------------------------------------


def _speaks_tls(place: Place, timeout_s: float) -> bool:
    """Return whether a port speaks TLS; certificates are not looked at, and nothing is sent but the handshake."""
    anybody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anybody.check_hostname = False
    anybody.verify_mode = ssl.CERT_NONE
    try:
        with _connect(place, timeout_s) as plain, anybody.wrap_socket(plain, server_hostname=place.host):
            return True
    except CUT:
        return False
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")
    except OSError:
        return False


def _answers_http(place: Place, timeout_s: float) -> bool:
    try:
        with _connect(place, timeout_s) as plain:
            answer = _ask(plain, _HTTP_REQUEST)
    except OSError:
        return False
    return isinstance(answer, bytes) and answer.startswith(b"HTTP/")


def _has_no_names(context: ssl.SSLContext, place: Place, timeout_s: float) -> bool:
    """Return whether a certificate that is trusted, but is for another host, has no subjectAltName at all."""
    context.check_hostname = False
    try:
        with _connect(place, timeout_s) as plain, context.wrap_socket(plain, server_hostname=place.host) as secured:
            return "subjectAltName" not in (secured.getpeercert() or {})
    except OSError:
        return False
    finally:
        context.check_hostname = True
