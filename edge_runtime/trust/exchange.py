"""Asks the server's joining side over TLS: first for the authority, whose hash the token has, then trusting it.

Nothing secret is sent before the server has shown a certificate of the authority that the token names.
"""

from __future__ import annotations

import contextlib
import hmac
import http.client
import ssl
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import msgspec
from cryptography import x509

from edge_runtime.errors import ConfigError, CoveyError, EnrolmentError, NetworkError, ProtocolError, wall
from edge_runtime.network.cause import Place
from edge_runtime.network.causes import cause_of_error
from edge_runtime.network.http_address import check_http_url
from edge_runtime.trust.keys import certificate_sha256, read_certificate
from edge_runtime.trust.messages import MOST_BYTES, JoinAnswer, Refusal
from edge_runtime.trust.validity import ClockError, check_valid_now

if TYPE_CHECKING:
    from pathlib import Path

_PORT = 8443
_SERVER = "server:"
"""How the common name of a server's certificate begins."""
_CLOCK_KINDS = ("expired", "not-yet-valid")
_FINAL_KINDS = (
    "wrong-name",
    "no-names",
    "unknown-authority",
    "extension",
    "weak",
    "client-certificate-missing",
    "client-certificate-refused",
    "client-certificate-expired",
)
_ANOTHER = "check the address, and that the token is of this fleet: covey fleet token NAME"
T = TypeVar("T")


class NotNowError(NetworkError):
    """The server cannot be reached or cannot answer; another attempt may succeed.

    Args:
        what: see CoveyError.
        hint: see CoveyError.
        retry_s: seconds after which the server wants to be asked again; None: it has not said.
    """

    def __init__(self, what: str, hint: str = "", retry_s: float | None = None) -> None:
        super().__init__(what, hint)
        self.retry_s = retry_s


class AnotherAuthorityError(EnrolmentError):
    """A server belongs to another authority than the token's; nothing secret was sent to it."""


class JoinServer:
    """The joining side of a server.

    Args:
        url: ``https://host:port``.
        timeout_s: how long it may be silent.
        own_certificate: path of the certificate that is shown to it, for errors; None: none.

    Raises:
        ConfigError: ``url`` is not an https address.
    """

    def __init__(self, url: str, timeout_s: float = 30.0, own_certificate: str | None = None) -> None:
        parts = urlsplit(check_http_url(url))
        if parts.scheme != "https":
            raise ConfigError(f"{url} is not an https address", "devices join over TLS only: https://server:8443")
        self._path, self._timeout_s = parts.path, timeout_s
        self.place = Place("server", parts.hostname or "", parts.port or _PORT, own_certificate)

    def authority(self, sha256: bytes, now_s: float) -> x509.Certificate:
        """Return the fleet's authority, which is known by its hash; the connection itself proves nothing yet.

        Args:
            sha256: hash of its certificate, from the token.
            now_s: this machine's time.

        Raises:
            AnotherAuthorityError: the server is of another authority.
            ClockError: the server's certificate or its authority's is not valid by this machine's clock.
            NotNowError: no answer.
            ProtocolError: the answer is no certificate.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        data, shown = self._ask("GET", "/ca", context)
        found = read_certificate(data, f"the authority's certificate from {self.place}")
        if not hmac.compare_digest(certificate_sha256(found), sha256):
            raise AnotherAuthorityError(
                f"{self.place} belongs to another authority than the one that made the token", _ANOTHER
            )
        anew = "make the fleet anew on the server, and join with a new token"
        check_valid_now(found, "the certificate of the fleet's authority", now_s, anew)
        if shown is not None:
            with wall(lambda cause: ProtocolError(f"the certificate of {self.place} cannot be read: {cause}")):
                server = x509.load_der_x509_certificate(shown)
            check_valid_now(server, f"the certificate of {self.place}", now_s, "restart covey serve, which renews it")
        return found

    def ask(self, path: str, request: msgspec.Struct | None, context: ssl.SSLContext) -> JoinAnswer:
        """Send a request (None: ask with GET) over a connection that a context verifies, and return the answer.

        Raises:
            EnrolmentError: the server refuses the device.
            ClockError: a certificate is not valid by this machine's clock.
            NotNowError: no answer, or the server says to try again.
            NetworkError: the server's certificate is not the fleet's, or is for another name.
            ProtocolError: the answer is not what this version expects.
        """
        body = None if request is None else msgspec.json.encode(request)
        data, _ = self._ask("GET" if body is None else "POST", path, context, body)
        hint = "use the same version of Covey on server and device"
        with wall(lambda cause: ProtocolError(f"the answer of {self.place} cannot be read: {cause}", hint)):
            return msgspec.json.decode(data, type=JoinAnswer)

    def _ask(
        self, method: str, path: str, context: ssl.SSLContext, body: bytes | None = None
    ) -> tuple[bytes, bytes | None]:
        """Return the body of an answer, and the certificate that the server has shown (DER)."""
        connection = http.client.HTTPSConnection(
            self.place.host, self.place.port, timeout=self._timeout_s, context=context
        )
        try:
            with contextlib.closing(connection):
                connection.connect()
                if context.verify_mode is ssl.CERT_REQUIRED:
                    self._check_is_server(connection)
                shown = connection.sock.getpeercert(binary_form=True) if connection.sock else None
                headers = {"content-type": "application/json", "connection": "close"}
                connection.request(method, self._path + path, body, headers)
                answer = connection.getresponse()
                data = answer.read(2 * MOST_BYTES + 1)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._broken(error) from error
        if len(data) > 2 * MOST_BYTES:
            raise ProtocolError(f"the answer of {self.place} is too long", _ANOTHER)
        if answer.status >= http.client.MULTIPLE_CHOICES:
            raise self._refusal(answer.status, data, answer.headers.get("retry-after"))
        return data, shown

    def _check_is_server(self, connection: http.client.HTTPSConnection) -> None:
        """Check before anything is sent that it is the server that has proved itself, and not the fleet's broker.

        Raises:
            NetworkError: it is another one of the fleet's.
        """
        shown: Any = connection.sock.getpeercert() if connection.sock else None
        names = [value for entry in (shown or {}).get("subject", ()) for key, value in entry if key == "commonName"]
        if not any(name.startswith(_SERVER) for name in names):
            raise NetworkError(
                f"{self.place} shows a certificate of the fleet that is not its server's ({', '.join(names)})", _ANOTHER
            )

    def _broken(self, error: Exception) -> NetworkError:
        cause = cause_of_error(error, self.place)
        if cause.kind in _CLOCK_KINDS:
            return ClockError(cause.finding, cause.remedy)
        if cause.kind in _FINAL_KINDS:
            return NetworkError(cause.finding, cause.remedy)
        return NotNowError(cause.finding, cause.remedy)

    def _refusal(self, status: int, data: bytes, retry_after: str | None) -> CoveyError:
        """Return the error of an answer that is no success."""
        try:
            said = msgspec.json.decode(data, type=Refusal)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            said = Refusal(f"{self.place} answered {status}", "check that it is the --join-port of covey serve")
        if status in (429, 408) or status >= http.client.INTERNAL_SERVER_ERROR:
            wait_s = float(retry_after) if retry_after and retry_after.isdigit() and len(retry_after) < 5 else None
            return NotNowError(said.error, said.hint, wait_s)
        if status == http.client.FORBIDDEN:
            return EnrolmentError(said.error, said.hint)
        return ProtocolError(said.error, said.hint)


def trusting(authority_pem: str, own: tuple[Path, Path] | None = None) -> ssl.SSLContext:
    """Return a context that trusts a fleet's authority alone, by the strict rules of RFC 5280.

    Args:
        authority_pem: its certificate.
        own: the device's certificate and its key; None: it shows none.

    Raises:
        ConfigError: the files are no certificate with its key.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    try:
        context.load_verify_locations(cadata=authority_pem)
        if own is not None:
            context.load_cert_chain(own[0], own[1], password=lambda: "")
    except (ssl.SSLError, OSError) as error:
        files = "the authority's certificate" if own is None else f"{own[0]} with {own[1]}"
        raise ConfigError(f"{files} cannot be used: {error}", "join again with a new token") from error
    return context
