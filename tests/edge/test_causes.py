"""The tables of causes: every row, from exceptions as ``socket`` and ``ssl`` raise them, and MQTT's reason codes."""

from __future__ import annotations

import errno
import socket
import ssl
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.errors import ConfigError
from edge_runtime.network.address import parse_broker, without_password
from edge_runtime.network.cause import Place
from edge_runtime.network.causes import cause_of_error, denied, loss_cause, refusal_cause
from edge_runtime.network.http_causes import Answer, answer_cause

BROKER = Place("broker", "host", 8883, now_s=0.0)
OWN = Place("broker", "fd00::1", 8883, own_certificate="pi.pem", now_s=0.0)


def tls_error(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, f"[SSL: {reason}] (_ssl.c:1000)")
    error.reason = reason
    return error


def verify_error(code: int) -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_code, error.verify_message = code, "OpenSSL's words"
    return error


@pytest.mark.parametrize(
    ("error", "place", "kind"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), BROKER, "name-unknown"),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"), BROKER, "name-unknown"),
        (UnicodeError("label empty or too long"), BROKER, "name-unknown"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), BROKER, "refused"),
        (TimeoutError("timed out"), BROKER, "unreachable"),
        (TimeoutError(errno.ETIMEDOUT, "Connection timed out"), BROKER, "unreachable"),
        (TimeoutError("_ssl.c:990: The handshake operation timed out"), BROKER, "silent"),
        (OSError(errno.EHOSTUNREACH, "No route to host"), BROKER, "unreachable"),
        (OSError(errno.ENETUNREACH, "Network is unreachable"), BROKER, "unreachable"),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), BROKER, "closed"),
        (ssl.SSLEOFError(8, "EOF occurred in violation of protocol"), BROKER, "closed"),
        (tls_error("UNEXPECTED_EOF_WHILE_READING"), BROKER, "closed"),
        (OSError(errno.EMFILE, "Too many open files"), BROKER, "other"),
        (verify_error(10), BROKER, "expired"),
        (verify_error(9), BROKER, "not-yet-valid"),
        (verify_error(18), BROKER, "unknown-authority"),
        (verify_error(20), BROKER, "unknown-authority"),
        (verify_error(7), BROKER, "unknown-authority"),
        (verify_error(62), BROKER, "wrong-name"),
        (verify_error(64), OWN, "wrong-name"),
        (verify_error(26), BROKER, "extension"),
        (verify_error(85), BROKER, "extension"),
        (verify_error(92), BROKER, "extension"),
        (verify_error(66), BROKER, "weak"),
        (verify_error(23), BROKER, "tls-failed"),
        (tls_error("WRONG_VERSION_NUMBER"), BROKER, "tls-unwanted"),
        (tls_error("RECORD_LAYER_FAILURE"), BROKER, "tls-unwanted"),
        (tls_error("TLSV1_ALERT_PROTOCOL_VERSION"), BROKER, "tls-version"),
        (tls_error("UNSUPPORTED_PROTOCOL"), BROKER, "tls-version"),
        (tls_error("LEGACY_SIGALG_DISALLOWED_OR_UNSUPPORTED"), BROKER, "tls-version"),
        # Debian 12's Python 3.11.2 has no name for it.
        (ssl.SSLError(1, "[SSL] legacy sigalg disallowed or unsupported (_ssl.c:992)"), BROKER, "tls-version"),
        (ssl.SSLError(1, "words of a later OpenSSL"), BROKER, "tls-failed"),
        (tls_error("SSLV3_ALERT_HANDSHAKE_FAILURE"), BROKER, "client-certificate-missing"),
        (tls_error("SSLV3_ALERT_HANDSHAKE_FAILURE"), OWN, "tls-version"),
        (tls_error("TLSV13_ALERT_CERTIFICATE_REQUIRED"), BROKER, "client-certificate-missing"),
        (tls_error("TLSV1_ALERT_UNKNOWN_CA"), OWN, "client-certificate-refused"),
        (tls_error("SSLV3_ALERT_CERTIFICATE_REVOKED"), OWN, "client-certificate-refused"),
        (tls_error("SSLV3_ALERT_BAD_CERTIFICATE"), OWN, "client-certificate-refused"),
        (tls_error("SSLV3_ALERT_CERTIFICATE_EXPIRED"), OWN, "client-certificate-expired"),
        (tls_error("TLSV1_ALERT_INTERNAL_ERROR"), OWN, "tls-failed"),
    ],
)
def test_each_exception_has_its_cause(error: BaseException, place: Place, kind: str) -> None:
    cause = cause_of_error(error, place)
    assert cause.kind == kind
    assert cause.remedy
    assert "{" not in str(cause)
    assert str(place) in cause.finding or place.host in cause.finding


@pytest.mark.parametrize(
    ("code", "user", "kind"),
    [
        (135, None, "password-missing"),
        (134, "pi", "not-authorised"),
        (135, "pi", "not-authorised"),
        (133, "pi", "client-id"),
        (132, None, "mqtt-version"),
        (136, None, "unavailable"),
        (159, None, "unavailable"),
        (157, None, "other"),
    ],
)
def test_each_refusal_has_its_cause(code: int, user: str | None, kind: str) -> None:
    cause = refusal_cause(code, "words", BROKER, user=user, identity="covey-default-pi")
    assert (cause.kind, "words" in cause.finding) == (kind, True)


def test_a_member_with_a_certificate_is_told_of_its_name() -> None:
    refused = refusal_cause(135, "Not authorized", OWN, user=None, identity="x")
    assert (refused.kind, "pi.pem" in refused.finding) == ("not-authorised", True)
    assert "the certificate pi.pem" in denied(OWN, "read", "a/b", None).finding
    assert "anonymous clients" in denied(BROKER, "write", "a/b", None).finding


@pytest.mark.parametrize(
    ("error", "waiting_bytes", "closed_soon", "kind"),
    [
        (None, 0, 1, "closed"),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), 0, 1, "closed"),
        (None, 60_000, 1, "closed"),
        (None, 60_000, 2, "oversize"),
        (None, 300, 2, "takeover"),
        (ConnectionResetError(errno.ECONNRESET, "reset"), 60_000, 3, "oversize"),
        (OSError(errno.EHOSTUNREACH, "No route to host"), 60_000, 3, "unreachable"),
        (tls_error("SSLV3_ALERT_CERTIFICATE_EXPIRED"), 0, 2, "client-certificate-expired"),
        (TimeoutError("operation timed out"), 0, 1, "silent"),
    ],
)
def test_each_loss_has_its_cause(error: Any, waiting_bytes: int, closed_soon: int, kind: str) -> None:
    cause = loss_cause(error, OWN, identity="covey-x", waiting_bytes=waiting_bytes, closed_soon=closed_soon)
    assert cause.kind == kind


@settings(max_examples=50, deadline=None)
@given(
    code=st.integers(100, 999),
    body=st.text(max_size=300).map(lambda text: f"<html>{text}</html>"),
    method=st.sampled_from(["GET", "HEAD", "PATCH"]),
)
def test_no_page_is_ever_quoted(code: int, body: str, method: str) -> None:
    cause = answer_cause(Answer(code, method, "http://host/blobs/x", body), Place("server", "host", 80))
    assert "<html>" not in str(cause)
    assert str(code) in cause.finding
    assert cause.remedy


SECRET = st.text("abc/#?%:@[]é ", min_size=1, max_size=12).map(lambda text: f"SEcret{text}SEcret")


@settings(max_examples=50, deadline=None)
@given(
    SECRET,
    st.sampled_from(["mqtt://pi:{}@host:x", "mqtt://pi:{}@host:99999", "http://pi:{}@host", "mqtt://pi:{}@a..b"]),
)
def test_a_password_is_in_no_message(secret: str, form: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_broker(form.format(secret))
    assert "SEcret" not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("mqtt://pi:secret@host:1883", "mqtt://pi:…@host:1883"),
        ("mqtt://pi@host", "mqtt://pi@host"),
        ("mqtt://host:1883", "mqtt://host:1883"),
        ("mqtt://pi:a@b@host", "mqtt://pi:…@host"),
    ],
)
def test_addresses_are_shown_without_the_password(url: str, shown: str) -> None:
    assert without_password(url) == shown


@pytest.mark.parametrize(
    "url", ["mqtt://host:0", "mqtt://a..b", "mqtt://host:1883/path", "mqtt://pi:x#y@host", "mqtt://[::1"]
)
def test_addresses_that_cannot_be_used_are_said_at_once(url: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_broker(url)
    assert raised.value.hint
