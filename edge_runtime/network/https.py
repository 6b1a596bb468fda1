"""Requests to the server over HTTP or HTTPS, with this member's TLS files; failures say their cause."""

from __future__ import annotations

import contextlib
import http.client
import urllib.error
import urllib.request
from typing import IO, TYPE_CHECKING
from urllib.parse import urlsplit

from edge_runtime.errors import NetworkError
from edge_runtime.network.cause import Place
from edge_runtime.network.causes import CUT, cause_of_error
from edge_runtime.network.http_causes import Answer, answer_cause, not_covey
from edge_runtime.network.tls import tls_context

if TYPE_CHECKING:
    from edge_runtime.network.address import TlsFiles
    from edge_runtime.network.cause import Cause

_TIMEOUT_S = 30.0
_EARLY_S = 3.0
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
        self._own_certificate = None if tls is None else tls.cert_file
        try:
            self.place = self._place_of(base_url)
        except (ValueError, KeyError) as error:
            raise NetworkError(
                f"{base_url!r} is not an http address", "set server_url in edge.toml, or covey serve --public-url"
            ) from error
        is_secure = base_url.startswith("https:")  # where it is not, an answer may redirect to where it is
        self._context = tls_context(tls, and_system=True) if is_secure or tls is not None else None

    def _place_of(self, url: str) -> Place:
        parts = urlsplit(url)
        return Place("server", parts.hostname or "", parts.port or _PORTS[parts.scheme], self._own_certificate)

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
        redirects = _Redirects()
        opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=self._context), redirects)
        try:
            answer: http.client.HTTPResponse = opener.open(request, timeout=self._timeout_s)
        except urllib.error.HTTPError as error:
            with error:
                refused = _answer_of(error, error.code, method, url, len(data or b""))
            raise self._refusal(refused) from error
        except urllib.error.URLError as error:
            reason = error.reason if isinstance(error.reason, BaseException) else error
            if data and isinstance(reason, CUT):  # the server may have answered before it took the body
                early = self.announce(method, resource, len(data), headers)
                if early is not None and early.code >= http.client.MULTIPLE_CHOICES:
                    raise self._refusal(early) from error
            raise self._broken(reason, redirects.target) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._broken(error, redirects.target) from error
        if method == "GET" and answer.headers.get_content_type() == "text/html":
            answer.close()
            raise AnswerError(not_covey(self.place, url), is_own=False)
        return answer

    def _refusal(self, refused: Answer) -> AnswerError | BrokenTransferError:
        """Return the error of an answer that is no success: whether it may change decides the class."""
        cause = answer_cause(refused, self.place)
        if refused.code < http.client.INTERNAL_SERVER_ERROR and refused.code not in _TRY_AGAIN:
            return AnswerError(cause, is_own=refused.is_own)
        return BrokenTransferError(cause.finding, cause.remedy)

    def announce(
        self, method: str, resource: str, n_bytes: int, headers: dict[str, str] | None = None
    ) -> Answer | None:
        """Announce a body without sending it; return the answer, None where the server waits for the body first.

        Raises:
            BrokenTransferError: the server cannot be reached, or closes the connection.
        """
        parts, wait_s = urlsplit(self._base_url), min(_EARLY_S, self._timeout_s)
        if self._context is None or parts.scheme == "http":
            connection = http.client.HTTPConnection(self.place.host, self.place.port, timeout=wait_s)
        else:
            connection = http.client.HTTPSConnection(
                self.place.host, self.place.port, timeout=wait_s, context=self._context
            )
        try:
            with contextlib.closing(connection):
                connection.putrequest(method, parts.path + resource)
                for name, value in {**(headers or {}), "Content-Length": str(n_bytes)}.items():
                    connection.putheader(name, value)
                connection.endheaders()
                answer = connection.getresponse()
                return _answer_of(answer, answer.status, method, self._base_url + resource, n_bytes)
        except TimeoutError:
            return None
        except (OSError, http.client.HTTPException) as error:
            raise self._broken(error, None) from error

    def _broken(self, error: BaseException, target: str | None) -> BrokenTransferError:
        """Return the error of a request that got no answer; ``target``: where an answer redirected to before."""
        try:
            place = self.place if target is None else self._place_of(target)
        except (ValueError, KeyError):
            place = self.place
        cause = cause_of_error(error, place)
        by = "" if target is None else f" ({self.place} answered with a redirect to {target})"
        return BrokenTransferError(cause.finding + by, cause.remedy)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects as urllib does, and keeps where the last one led."""

    target: str | None = None

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """Return the request that follows a redirect, as urllib does."""
        self.target = newurl
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _answer_of(
    answer: http.client.HTTPResponse | urllib.error.HTTPError, code: int, method: str, url: str, sent_bytes: int
) -> Answer:
    try:
        body = answer.read(_BODY_BYTES).decode(errors="replace")
    except (OSError, http.client.HTTPException):
        body = ""  # the status alone says enough
    is_of_uploads = "Tus-Resumable" in answer.headers
    return Answer(code, method, url, body, answer.headers.get("Location"), sent_bytes, is_of_uploads)
