"""Requests to the server over HTTP or HTTPS, with this member's TLS files; failures say their cause."""

from __future__ import annotations

import contextlib
import http.client
import io
import time
import urllib.error
import urllib.request
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urlsplit

from edge_runtime.errors import NetworkError, without_user
from edge_runtime.network.cause import Place
from edge_runtime.network.causes import CUT, cause_of_error
from edge_runtime.network.http_causes import Answer, answer_cause, not_covey
from edge_runtime.network.pace import LeastSpeed, PacedReader
from edge_runtime.network.tls import tls_context

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from edge_runtime.network.address import TlsFiles
    from edge_runtime.network.cause import Cause

    Paced = Callable[[io.RawIOBase], PacedReader]

_TIMEOUT_S = 30.0
_LEAST = LeastSpeed(1 << 13, 2 * _TIMEOUT_S)
"""What a server must send: a slow modem's speed, of which no transfer gets done within a round."""
_LONGEST_AGAIN_S = 300.0
"""The longest ``Retry-After`` that is believed, in seconds."""
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
        again_after_s: seconds after which the server asks for the next attempt; None: it does not say.
    """

    def __init__(self, words: str, remedy: str = _REMEDY, again_after_s: float | None = None) -> None:
        super().__init__(words)
        self.remedy, self.again_after_s = remedy, again_after_s


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
        least: how fast an answer must come.
        clock: monotonic seconds.

    Raises:
        NetworkError: it is not an http or https address.
        ConfigError: the TLS files cannot be used.
    """

    def __init__(
        self,
        base_url: str,
        tls: TlsFiles | None,
        timeout_s: float = _TIMEOUT_S,
        least: LeastSpeed = _LEAST,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._base_url, self._timeout_s = base_url, timeout_s
        self._paced = lambda inner: PacedReader(inner, least, clock)
        self._own_certificate = None if tls is None else tls.cert_file
        try:
            self.place = self._place_of(base_url)
        except (ValueError, KeyError) as error:
            raise NetworkError(
                f"{without_user(base_url)!r} is not an http address",
                "set server_url in edge.toml, or covey serve --public-url",
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
        handlers = _PacedHttp(self._paced), _PacedHttps(self._paced, self._context)
        opener = urllib.request.build_opener(*handlers, redirects)
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
        return BrokenTransferError(cause.finding, cause.remedy, refused.again_after_s)

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
        by = "" if target is None else f" ({self.place} answered with a redirect to {without_user(target)})"
        return BrokenTransferError(cause.finding + by, cause.remedy)


class _PacedHttp(urllib.request.HTTPHandler):
    def __init__(self, paced: Paced) -> None:
        super().__init__()
        self._paced = paced

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        """Open a request."""
        return self.do_open(_made(http.client.HTTPConnection, self._paced), req)


class _PacedHttps(urllib.request.HTTPSHandler):
    def __init__(self, paced: Paced, context: ssl.SSLContext | None) -> None:
        super().__init__(context=context)
        self._paced, self._given = paced, context

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        """Open a request."""
        return self.do_open(_made(http.client.HTTPSConnection, self._paced), req, context=self._given)


def _made(kind: type[http.client.HTTPConnection], paced: Paced) -> Any:  # noqa: ANN401 as urllib takes it
    """Return what makes connections of a kind, whose answers must come fast enough."""

    def answer(*args: Any, **named: Any) -> http.client.HTTPResponse:  # noqa: ANN401 of http.client
        made = http.client.HTTPResponse(*args, **named)
        made.fp = io.BufferedReader(paced(made.fp.detach()))
        return made

    def make(host: str, **named: Any) -> http.client.HTTPConnection:  # noqa: ANN401 of urllib
        connection = kind(host, **named)
        connection.response_class = answer  # type: ignore[assignment] # called only
        return connection

    return make


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
    again = answer.headers.get("Retry-After") or ""
    again_after_s = min(float(again), _LONGEST_AGAIN_S) if again.isascii() and again.isdigit() else None
    location = answer.headers.get("Location")
    return Answer(code, method, url, body, location, sent_bytes, is_of_uploads, again_after_s)
