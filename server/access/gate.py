"""The gate before API and pages: who asks, whether they may, how often; and the headers of every answer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import msgspec

from edge_runtime.errors import ConfigError, CoveyError, NetworkError
from server.access.headers import is_local_host, is_own_origin, last_forwarded, with_security
from server.access.operators import digest_of
from server.access.pages import refused_page
from server.access.sessions import FormTokens, Sessions
from server.storage.audit_records import Asker
from server.trust.rate_limit import Rate, RateLimit

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.access.operators import Operators

ASKER = "covey_asker"
"""Key of a scope: who asks (Asker)."""
FORMS = "covey_forms"
"""Key of a scope: for whom forms are made; see Access.forms."""
SIGN_IN, STYLE = "/ui/login", "/ui/access.css"
_OPEN = (SIGN_IN, STYLE)
FORM_HEADER = "x-covey-form-token"
_PAGES = ("/", "/ui")
_SAFE = ("GET", "HEAD", "OPTIONS")
CHANGES = Rate(60, 5.0)
"""Changes of one operator over TCP: so many at once, and so many more each second."""
ALL_CHANGES = Rate(300, 50.0)
SIGN_INS = Rate(100, 10.0)
"""Of one address; a wrong token counts for fifty: two guesses at once, then one in five seconds."""
ALL_SIGN_INS = Rate(60, 2.0)
_LONGEST_NAME = 200


@dataclass(frozen=True)
class Proxy:
    """A proxy that says who has signed in at it.

    Attributes:
        address: of the proxy; from any other address the header says nothing.
        header: the header with the operator's name, in small letters.
    """

    address: str
    header: str


class Access:
    """Who may use one application; used in the thread of its event loop.

    Args:
        operators: who has which token; None: over a socket that only the server's own user can open.
        clock_s: a clock that never goes back.
        public: the origin under which browsers reach the server, ``https://covey.example``; None: not known.
        proxy: is believed who has signed in; None: nobody is.

    Attributes:
        sessions: of browsers; None over the socket.
        forms: makes the tokens of forms.
        sign_ins: how often an address may show a token.
        changes: how often an operator may change something.
    """

    def __init__(
        self,
        operators: Operators | None,
        clock_s: Callable[[], float],
        public: str | None = None,
        proxy: Proxy | None = None,
    ) -> None:
        self.operators, self.public, self.proxy = operators, public, proxy
        self.sessions = None if operators is None else Sessions(operators, clock_s)
        self.forms = FormTokens()
        self.sign_ins = RateLimit(clock_s, SIGN_INS, ALL_SIGN_INS)
        self.changes = RateLimit(clock_s, CHANGES, ALL_CHANGES)

    @property
    def is_https(self) -> bool:
        """Whether browsers reach the server over HTTPS."""
        return self.public is not None and self.public.startswith("https:")

    @property
    def cookie(self) -> str:
        """Name of the session's cookie; with the prefix, browsers hold it to HTTPS and to this host."""
        return "__Host-covey_session" if self.is_https else "covey_session"

    def address_of(self, scope: Any, headers: dict[str, str]) -> str:  # noqa: ANN401 an ASGI scope
        """Return from which address a request comes; behind the trusted proxy, that of the proxy's client."""
        peer = str((scope.get("client") or ("unknown", 0))[0])
        if self.proxy is not None and peer == self.proxy.address:
            return last_forwarded(headers.get("x-forwarded-for", "")) or peer
        return peer

    def sign_in(self, address: str, token: str) -> tuple[str, str] | None:
        """Return an operator's name and a new session's secret; None: the token is nobody's.

        Raises:
            TooOftenError: this address, or all of them, have shown too many.
        """
        assert self.operators is not None  # noqa: S101 sign_in is for TCP
        assert self.sessions is not None  # noqa: S101
        wait_s = self.sign_ins.wait_s(address)
        if wait_s > 0:
            raise TooOftenError("too many sign-ins", wait_s)
        name = self.operators.name_of(token)
        if name is None:
            self.sign_ins.guessed(address)
        return None if name is None else (name, self.sessions.begin(name, digest_of(token)))

    def known(self, address: str, token: str) -> str | None:
        """Return whose token a command shows; None: nobody's, which counts as a sign-in with a wrong one does.

        Raises:
            TooOftenError: this address has guessed too often.
        """
        assert self.operators is not None  # noqa: S101
        wait_s = self.sign_ins.blocked_s(address)
        name = self.operators.name_of(token) if wait_s == 0 else None
        if name is None:
            wait_s = wait_s or self.sign_ins.wait_s(address)
            if wait_s > 0:
                raise TooOftenError("too many wrong tokens", wait_s)
            self.sign_ins.guessed(address)
        return name


class TooOftenError(NetworkError):
    """Something is asked for too often.

    Args:
        what: what.
        wait_s: seconds until it may be asked for again.
    """

    def __init__(self, what: str, wait_s: float) -> None:
        self.wait_s = math.ceil(wait_s)
        super().__init__(what, f"try again in {self.wait_s} s")


class _RefusedError(Exception):
    def __init__(self, status: int, error: CoveyError) -> None:
        super().__init__(error.what)
        self.status, self.error = status, error


class Gate:
    """An ASGI application that lets requests through to another one, with who asks in their scope.

    Args:
        app: the application.
        access: who may use it.
    """

    def __init__(self, app: Any, access: Access) -> None:  # noqa: ANN401 an ASGI application
        self._app, self._access = app, access

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401 ASGI
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = headers_of(scope)

        async def protected(message: Any) -> None:  # noqa: ANN401
            if message["type"] == "http.response.start":
                found = with_security(message.get("headers", []), is_https=self._access.is_https)
                message = {**message, "headers": found}
            await send(message)

        try:
            scope = self._admitted(scope, headers)
        except TooOftenError as error:
            await _answer(protected, scope, 429, error)
        except _RefusedError as refusal:
            is_lost = refusal.status == 401 and scope["method"] == "GET" and is_page(scope["path"])
            if is_lost:
                asked = scope["path"] + ("?" + scope["query_string"].decode("latin-1") if scope["query_string"] else "")
                place = f"{SIGN_IN}?next={quote(asked, safe='')}"
                await _send(protected, 303, [(b"location", place.encode())], b"")
            else:
                await _answer(protected, scope, refusal.status, refusal.error)
        except CoveyError as error:  # the file of operators was changed, and cannot be used
            await _answer(protected, scope, 500, error)
        else:
            await self._app(scope, receive, protected)

    def _admitted(self, scope: Any, headers: dict[str, str]) -> Any:  # noqa: ANN401
        """Return the scope of a request that may pass, with who asks."""
        access, is_change = self._access, scope["method"] not in _SAFE
        if is_change and not is_own_origin(headers, access.public):
            raise _RefusedError(
                403, ConfigError("the request comes from another site's page", "open Covey's own page, and ask there")
            )
        if access.operators is None:
            host = headers.get("host", "").strip()
            if host and not is_local_host(host, access.public):
                raise _RefusedError(
                    403, ConfigError(f"the socket is not reached as {host[:80]}", "use localhost, or --api-url")
                )
            return {**scope, ASKER: Asker("local", "socket"), FORMS: "socket"}
        if scope["path"] in _OPEN:
            return {**scope, ASKER: None, FORMS: None}
        asker, forms = self._asker(scope, headers)
        if is_change:
            wait_s = access.changes.wait_s(asker.name)
            if wait_s > 0:
                raise TooOftenError(f"{asker.name} has asked for too many changes", wait_s)
            if forms is not None and not is_page(scope["path"]):
                check_form(access, forms, headers.get(FORM_HEADER, ""))
        return {**scope, ASKER: asker, FORMS: forms}

    def _asker(self, scope: Any, headers: dict[str, str]) -> tuple[Asker, str | None]:  # noqa: ANN401
        """Return who asks, and for whom forms are made; None: no browser adds by itself what shows who it is."""
        access, address = self._access, self._access.address_of(scope, headers)
        kind, _, token = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            name = access.known(address, token)
            if name is not None:
                return Asker(name, "token", address), None
            raise _wrong()
        secret = cookies_of(headers).get(access.cookie)
        if secret is not None and access.sessions is not None:
            name = access.sessions.operator_of(secret)
            if name is not None:
                return Asker(name, "browser", address), secret
        name = self._named_by_proxy(scope)
        if name is not None:
            return Asker(name, "proxy", address), f"proxy {name}"
        raise _wrong()

    def _named_by_proxy(self, scope: Any) -> str | None:  # noqa: ANN401
        proxy = self._access.proxy
        if proxy is None or (scope.get("client") or ("",))[0] != proxy.address:
            return None
        found = [value for name, value in scope["headers"] if name.decode("latin-1").lower() == proxy.header]
        if len(found) != 1:
            return None
        name = found[0].decode("latin-1").strip()
        return name if 0 < len(name) <= _LONGEST_NAME and name.isprintable() else None


def check_form(access: Access, forms: str, token: str) -> None:
    """Check that a form was made for who sends it.

    Args:
        access: has made it.
        forms: for whom forms are made; FORMS of the scope.
        token: of the form.

    Raises:
        _RefusedError: it was not.
    """
    if not access.forms.is_valid(forms, token):
        raise _RefusedError(403, stale_form_error())


def stale_form_error() -> ConfigError:
    """Return the error of a form that was not made for who sends it."""
    return ConfigError("the form is not one of your session's", "go back, load the page again, and repeat it")


def is_page(path: str) -> bool:
    """Whether a path is one of the pages, for people; the others are for programs."""
    return path in _PAGES or path.startswith("/ui/")


def headers_of(scope: Any) -> dict[str, str]:  # noqa: ANN401
    """Return a request's headers by their names in small letters; of one that comes twice, the last."""
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def cookies_of(headers: dict[str, str]) -> dict[str, str]:
    """Return a request's cookies; none where they cannot be read."""
    try:
        return {name: morsel.value for name, morsel in SimpleCookie(headers.get("cookie", "")).items()}
    except CookieError:
        return {}


def _wrong() -> _RefusedError:
    hint = "give the content of api-token in the server's state directory, or your line of --operators: --token-file"
    return _RefusedError(401, ConfigError("the token is missing or wrong", f"{hint}, or COVEY_TOKEN"))


async def _answer(send: Any, scope: Any, status: int, error: CoveyError) -> None:  # noqa: ANN401
    if is_page(scope["path"]):
        kind, body = b"text/html; charset=utf-8", refused_page(error).encode()
    else:
        problem = {"error": error.what, "hint": error.hint, "exit_code": error.exit_code}
        kind, body = b"application/json", msgspec.json.encode(problem)
    headers = [(b"content-type", kind)]
    if isinstance(error, TooOftenError):
        headers.append((b"retry-after", str(error.wait_s).encode()))
    await _send(send, status, headers, body)


async def _send(send: Any, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:  # noqa: ANN401
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})
