"""The table of causes for TLS: from an exception of ``ssl`` to what is wrong with a certificate, version or port."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from edge_runtime.network.cause import Cause, Kind, Place, closed, log_remedy, words_of

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence

_AUTHORITY = "set ca_file in [tls] of edge.toml (covey serve: --tls-ca) to the certificate of the authority that"
_EXTENSIONS = "basicConstraints=critical,CA:TRUE and keyUsage=critical,keyCertSign"
_SET_CLOCK = "sudo timedatectl set-ntp true"

# OpenSSL's numbers X509_V_ERR_…, the kind, its finding and its remedy. {said}: OpenSSL's words.
_CERTIFICATES: Sequence[tuple[Sequence[int], Kind, str, str]] = (
    (
        (10,),
        "expired",
        "the certificate of {place}, or its authority's, has expired (this machine's clock: {clock})",
        f"renew the {{who}}'s certificate; if the clock is wrong, set it: {_SET_CLOCK}",
    ),
    (
        (9,),
        "not-yet-valid",
        "the certificate of {place} is not valid yet by this machine's clock ({clock})",
        f"set the clock: {_SET_CLOCK}; a board without a battery starts in the past",
    ),
    (
        (2, 18, 19, 20, 21, 27),
        "unknown-authority",
        "the authority that signed the certificate of {place} is not trusted here ({said})",
        f"{_AUTHORITY} signed the {{who}}",
    ),
    (
        (7, 30),
        "unknown-authority",
        "the certificate of {place} was signed by an authority with another key than ca_file's ({said})",
        f"{_AUTHORITY} signed the {{who}} last: one that is made anew keeps its name, not its key",
    ),
    (
        (62, 64),
        "wrong-name",
        "the certificate of {place} is for another name than {host}",
        "write the name that the certificate has, or make one with subjectAltName={san}",
    ),
    (
        (25, 26, 32, 34, 37, 39, 41, *range(79, 95)),
        "extension",
        "the certificate of {place}, or its authority's, lacks an extension or has a wrong one ({said})",
        f"make them anew: the {{who}}'s with extendedKeyUsage=serverAuth, its authority's with {_EXTENSIONS}",
    ),
    (
        (66, 67, 68),
        "weak",
        "the certificate of {place} has a key or a signature that is too weak ({said})",
        "make it anew with a P-256 key, or RSA of 2048 bits or more, and SHA-256",
    ),
)

_REFUSED_CERTIFICATE = (
    "ALERT_UNKNOWN_CA",
    "BAD_CERTIFICATE",
    "CERTIFICATE_UNKNOWN",
    "CERTIFICATE_REVOKED",
    "UNSUPPORTED_CERTIFICATE",
    "ACCESS_DENIED",
    "DECRYPT_ERROR",
)
_NO_CIPHER = ("HANDSHAKE_FAILURE", "NO_SHARED_CIPHER", "INSUFFICIENT_SECURITY")
_SET_OWN = "set cert_file and key_file in [tls] of edge.toml (covey serve: --tls-cert and --tls-key)"
_NO_CERTIFICATE: tuple[Kind, str, str] = (
    "client-certificate-missing",
    "{place} asks for a client certificate, and none is configured ({said})",
    _SET_OWN,
)

# How OpenSSL's reasons end, whether an own certificate must be missing (None: either), and the cause.
_ALERTS: Sequence[tuple[Sequence[str], bool | None, tuple[Kind, str, str]]] = (
    (
        (
            "UNSUPPORTED_PROTOCOL",
            "ALERT_PROTOCOL_VERSION",
            "NO_PROTOCOLS_AVAILABLE",
            "VERSION_TOO_LOW",
            "LEGACY_SIGALG_DISALLOWED_OR_UNSUPPORTED",  # SHA-1 and MD5 together, which TLS below 1.2 signs with
        ),
        None,
        (
            "tls-version",
            "{place} and this machine have no version of TLS in common ({said}); Covey needs 1.2 or 1.3",
            "let the {who} speak TLS 1.2 or newer (mosquitto: tls_version tlsv1.2)",
        ),
    ),
    (
        ("CERTIFICATE_EXPIRED",),
        None,
        (
            "client-certificate-expired",
            "{place} finds this member's certificate expired: {own}",
            f"renew it, and check the clocks of both machines: {_SET_CLOCK}",
        ),
    ),
    (("CERTIFICATE_REQUIRED",), None, _NO_CERTIFICATE),
    (_REFUSED_CERTIFICATE, True, _NO_CERTIFICATE),
    (  # with TLS 1.2 a certificate that is missing and a cipher that is missing end in one alert
        _NO_CIPHER,
        True,
        (
            "client-certificate-missing",
            "{place} ends the handshake ({said}): most likely it asks for a client certificate, and none is configured",
            f"{_SET_OWN}; if it asks for none, let it use its standard ciphers (mosquitto: no line ciphers)",
        ),
    ),
    (
        _REFUSED_CERTIFICATE,
        False,
        (
            "client-certificate-refused",
            "{place} refuses this member's certificate {own} ({said})",
            "let the authority that the {who} trusts (mosquitto: cafile) sign it; it must be in no revocation list",
        ),
    ),
    (
        _NO_CIPHER,
        False,
        (
            "tls-version",
            "{place} and this machine have no way of TLS encryption in common ({said})",
            "let the {who} speak TLS 1.2 or newer with its standard ciphers (mosquitto: no line ciphers)",
        ),
    ),
)
_NO_TLS = (
    "WRONG_VERSION_NUMBER",
    "HTTP_REQUEST",
    "PACKET_LENGTH_TOO_LONG",
    "DATA_LENGTH_TOO_LONG",
    "RECORD_LAYER_FAILURE",
    "UNKNOWN_PROTOCOL",
    "UNEXPECTED_MESSAGE",
)


def certificate_cause(error: ssl.SSLCertVerificationError, place: Place) -> Cause:
    """Return the cause of a certificate that did not verify."""
    for codes, kind, finding, remedy in _CERTIFICATES:
        if error.verify_code in codes:
            return _filled(kind, finding, remedy, place, error.verify_message)
    finding = "the certificate of {place} cannot be verified ({said})"
    return _filled("tls-failed", finding, "renew the {who}'s certificate", place, error.verify_message)


def tls_cause(error: ssl.SSLError, place: Place) -> Cause:
    """Return the cause of a TLS handshake that failed, or of an alert that arrived later."""
    reason = _reason_of(error)
    if "EOF" in reason:
        return closed(error, place)
    if reason.endswith(_NO_TLS):
        return tls_unwanted(place)
    for endings, is_missing, (kind, finding, remedy) in _ALERTS:
        if reason.endswith(tuple(endings)) and is_missing in (None, place.own_certificate is None):
            return _filled(kind, finding, remedy, place, words_of(error))
    return Cause("tls-failed", f"{place} broke off the TLS handshake ({words_of(error)})", log_remedy(place))


def _reason_of(error: ssl.SSLError) -> str:
    """Return OpenSSL's reason in capitals; a Python that is older than it has no name for it, and gives its words."""
    if reason := getattr(error, "reason", None):
        return str(reason).upper()
    found = re.search(r"\] (?:[^:]*: )?(.+?) \(_ssl\.c:\d+\)$", str(error))
    return "" if found is None else re.sub(r"\W+", "_", found[1]).upper()


def _filled(kind: Kind, finding: str, remedy: str, place: Place, said: str) -> Cause:
    words = {
        "place": str(place),
        "who": place.who,
        "host": place.host,
        "clock": place.clock,
        "own": place.own_certificate or "none is configured",
        "san": _san(place.host),
        "said": said,
    }
    return Cause(kind, finding.format_map(words), remedy.format_map(words))


def _san(host: str) -> str:
    """Return a host as an entry of subjectAltName."""
    return f"{'IP' if ':' in host or host.replace('.', '').isdigit() else 'DNS'}:{host}"


def no_names(place: Place) -> Cause:
    """Return the cause of a certificate that is trusted but has no subjectAltName."""
    return Cause(
        "no-names",
        f"the certificate of {place} has no subjectAltName, and its subject is another name than {place.host}",
        f"make it anew with subjectAltName={_san(place.host)}",
    )


def tls_unwanted(place: Place) -> Cause:
    """Return the cause of a plain port that was spoken to with TLS."""
    if place.who == "server":
        return Cause("tls-unwanted", f"{place} does not speak TLS", "write http:// instead of https://")
    return Cause(
        "tls-unwanted",
        f"{place} does not speak TLS: it is a plain port",
        "write mqtt:// instead of mqtts://, or give the port of the broker's TLS listener (usually 8883)",
    )


def tls_wanted(place: Place) -> Cause:
    """Return the cause of a TLS port that was spoken to plainly."""
    return Cause(
        "tls-wanted",
        f"{place} speaks TLS, and the address asks for a plain connection",
        "write mqtts:// instead of mqtt://, or give the port of the broker's plain listener (usually 1883)",
    )
