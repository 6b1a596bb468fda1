"""Requests to the server over HTTP or HTTPS, with this member's TLS files; failures say their cause."""

from __future__ import annotations

import contextlib
import http.client
import urllib.error
import urllib.request
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from edge_runtime.errors import NetworkError
from edge_runtime.network.cause import Place
from edge_runtime.network.causes import cause_of_error
from edge_runtime.network.http_causes import Answer, answer_cause, not_covey
from edge_runtime.network.tls import tls_context

if TYPE_CHECKING:
    from edge_runtime.network.address import TlsFiles
    from edge_runtime.network.cause import Cause

_TIMEOUT_S = 30.0
_PORTS = {"http": 80, "https": 443}
_BODY_BYTES = 500
_TRY_AGAIN = (http.client.CONFLICT, http.client.LOCKED)
_REMEDY = "check that the server runs and that a firewall lets this machine in"


class BrokenTransferError(Exception):
    """A transfer failed, and another attempt may succeed.

    Args:
        words: what happened.
        remedy: what a person can do if no attempt succeeds.
    """

    def __init__(self, words: str, remedy: str = _REMEDY) -> None:
        super().__init__(words)
        self.remedy = remedy


class AnswerError(NetworkError):
    """The server's answer is no success, and will not change.

    Args:
        cause: why.
        is_own: whether covey serve itself answered, and nothing before it.
    """

    def __init__(self, cause: Cause, *, is_own: bool) -> None:
        super().__init__(cause.finding, cause.remedy)
        self.is_own = is_own


class Https:
    """A server, asked over HTTP or HTTPS.

    Args:
        base_url: its address; resources are below it.
        tls: this member's TLS files. The server's certificate may be signed by their authority, or by one that the
            system trusts.
        timeout_s: how long the server may be silent.

    Raises:
        NetworkError: it is not an http or https address.
        ConfigError: the TLS files cannot be used.
    """

    def __init__(self, base_url: str, tls: TlsFiles | None, timeout_s: float = _TIMEOUT_S) -> None:
        self._base_url, self._timeout_s = base_url, timeout_s
        try:
            parts = urlsplit(base_url)
            self.place = Place(
                "server",
                parts.hostname or "",
                parts.port or _PORTS[parts.scheme],
                None if tls is None else tls.cert_file,
            )
        except (ValueError, KeyError) as error:
            raise NetworkError(
                f"{base_url!r} is not an http address", "set server_url in edge.toml, or covey serve --public-url"
            ) from error
        self._context = tls_context(tls, and_system=True) if parts.scheme == "https" else None

    def open(
        self, method: str, resource: str, headers: dict[str, str] | None = None, data: bytes | None = None
    ) -> http.client.HTTPResponse:
        """Ask for a resource and return the answer, whose body is yet to be read.

        Raises:
            NetworkError: the server's answer will not change: it has no such resource, or a proxy is in the way.
            BrokenTransferError: no answer, or one that may change.
        """
        url = self._base_url + resource
        request = urllib.request.Request(url, data, headers or {}, method=method)  # noqa: S310 see __init__
        try:
            answer: http.client.HTTPResponse = urllib.request.urlopen(  # noqa: S310 see __init__
                request, timeout=self._timeout_s, context=self._context
            )
        except urllib.error.HTTPError as error:
            with error:
                refused = _answer_of(error, error.code, method, url, len(data or b""))
            cause = answer_cause(refused, self.place)
            if error.code < http.client.INTERNAL_SERVER_ERROR and error.code not in _TRY_AGAIN:
                raise AnswerError(cause, is_own=refused.is_own) from error
            raise BrokenTransferError(cause.finding, cause.remedy) from error
        except urllib.error.URLError as error:
            cause = self._cause(error.reason if isinstance(error.reason, BaseException) else error)
            raise BrokenTransferError(cause.finding, cause.remedy) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            cause = self._cause(error)
            raise BrokenTransferError(cause.finding, cause.remedy) from error
        if method == "GET" and answer.headers.get_content_type() == "text/html":
            answer.close()
            raise AnswerError(not_covey(self.place, url), is_own=False)
        return answer

    def announce(self, method: str, resource: str, n_bytes: int) -> Answer | None:
        """Announce a body without sending it; return the answer, None where the server waits for the body first.

        Raises:
            BrokenTransferError: the server cannot be reached, or closes the connection.
        """
        parts = urlsplit(self._base_url)
        if self._context is None:
            connection = http.client.HTTPConnection(self.place.host, self.place.port, timeout=self._timeout_s)
        else:
            connection = http.client.HTTPSConnection(
                self.place.host, self.place.port, timeout=self._timeout_s, context=self._context
            )
        try:
            with contextlib.closing(connection):
                connection.putrequest(method, parts.path + resource)
                connection.putheader("Content-Length", str(n_bytes))
                connection.endheaders()
                answer = connection.getresponse()
                return _answer_of(answer, answer.status, method, self._base_url + resource, n_bytes)
        except TimeoutError:
            return None
        except (OSError, http.client.HTTPException) as error:
            cause = self._cause(error)
            raise BrokenTransferError(cause.finding, cause.remedy) from error

    def _cause(self, error: BaseException) -> Cause:
        return cause_of_error(error, self.place)


def _answer_of(
    answer: http.client.HTTPResponse | urllib.error.HTTPError, code: int, method: str, url: str, sent_bytes: int
) -> Answer:
    try:
        body = answer.read(_BODY_BYTES).decode(errors="replace")
    except (OSError, http.client.HTTPException):
        body = ""  # the status alone says enough
    is_of_uploads = "Tus-Resumable" in answer.headers
    return Answer(code, method, url, body, answer.headers.get("Location"), sent_bytes, is_of_uploads)
