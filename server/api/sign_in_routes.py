"""``/ui/login`` and ``/ui/logout``: a browser's session."""

from __future__ import annotations

import logging
import secrets
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from litestar import MediaType, Request, Response, get, post
from litestar.concurrency import sync_to_thread
from litestar.datastructures import Cookie

from edge_runtime.errors import ConfigError
from server.access.gate import FORMS, SIGN_IN, STYLE, TooOftenError, cookies_of, headers_of, stale_form_error
from server.access.pages import page, refused_page, style
from server.api.asked_by import AskedBy  # noqa: TC001 Litestar reads the handlers' types
from server.api.forms import field, read_form
from server.storage.audit_records import Asker

if TYPE_CHECKING:
    from litestar.handlers import HTTPRouteHandler
    from litestar.types import Scope

    from server.access.gate import Access
    from server.queue.operations import Operations

_LOG = logging.getLogger(__name__)
_HOME = "/ui/"
_NONCE = "covey_sign_in"
_LONGEST_NEXT = 2000


def forms_of(scope: Scope) -> str:
    """Return for whom forms are made; over a token without a browser, for nobody."""
    found: str | None = scope[FORMS]  # type: ignore[literal-required]
    return found or "token"


class _Pages:
    """The pages of one application.

    Args:
        operations: enters who has signed in.
        access: has the sessions.
    """

    def __init__(self, operations: Operations, access: Access) -> None:
        self._operations, self._access = operations, access

    def signing_in(self, next_path: str, problem: str = "", status: int = 200, wait_s: int = 0) -> Response[str]:
        """Return the page that asks for the token."""
        nonce = secrets.token_urlsafe(16)
        token = self._access.forms.token_of(f"sign-in {nonce}")
        body = page("sign_in.html.jinja", form_token=token, next=next_path, problem=problem)
        response = Response(body, status_code=status, media_type=MediaType.HTML)
        response.set_cookie(_cookie(self._access, _NONCE, nonce, path=SIGN_IN))
        if wait_s:
            response.set_header("retry-after", str(wait_s))
        return response

    async def sign_in(self, request: Request[Any, Any, Any]) -> Response[str]:
        """Begin a session."""
        access = self._access
        if access.sessions is None:
            return _to(_HOME)
        try:
            form = await read_form(request)
        except ConfigError as error:
            return self.signing_in(_HOME, error.what, 422)
        next_path, headers = own_path(field(form, "next")), headers_of(request.scope)
        nonce = cookies_of(headers).get(_NONCE, "")
        if not access.forms.is_valid(f"sign-in {nonce}", field(form, "form_token")):
            return self.signing_in(next_path, "The page was too old, or your browser takes no cookies: again.", 403)
        address = access.address_of(request.scope, headers)
        try:
            found = access.sign_in(address, field(form, "token").strip())
        except TooOftenError as error:
            return self.signing_in(next_path, f"{error.what}: {error.hint}", 429, error.wait_s)
        if found is None:
            _LOG.warning("a sign-in from %s with a wrong token", address)
            return self.signing_in(next_path, "The token is nobody's.", 401)
        name, secret = found
        await sync_to_thread(self._operations.note, Asker(name, "browser", address), "sign in")
        response = _to(next_path)
        response.set_cookie(_cookie(access, access.cookie, secret))
        return response

    async def sign_out(self, request: Request[Any, Any, Any], asker: AskedBy) -> Response[str]:
        """End a session."""
        access = self._access
        try:
            form = await read_form(request)
        except ConfigError as error:
            return Response(refused_page(error), status_code=422, media_type=MediaType.HTML)
        if not access.forms.is_valid(forms_of(request.scope), field(form, "form_token")):
            return stale_form()
        if access.sessions is not None and asker.way == "browser":
            access.sessions.end(cookies_of(headers_of(request.scope)).get(access.cookie, ""))
            await sync_to_thread(self._operations.note, asker, "sign out")
        response = _to(SIGN_IN)
        response.set_cookie(_cookie(access, access.cookie, "", max_age=0))
        return response

    def signing_out(self, request: Request[Any, Any, Any], asker: AskedBy) -> Response[str]:
        """Return the page that asks."""
        token = self._access.forms.token_of(forms_of(request.scope))
        body = page("sign_out.html.jinja", operator=asker.name, form_token=token)
        return Response(body, media_type=MediaType.HTML)


def sign_in_routes(operations: Operations, access: Access) -> list[HTTPRouteHandler]:
    """Return the routes.

    Args:
        operations: enters who has signed in.
        access: has the sessions.
    """
    pages = _Pages(operations, access)

    @get(SIGN_IN, include_in_schema=False, sync_to_thread=False)
    def sign_in_page(request: Request[Any, Any, Any]) -> Response[str]:
        return pages.signing_in(own_path(request.query_params.get("next", "")))

    @post(SIGN_IN, include_in_schema=False, status_code=303)
    async def sign_in(request: Request[Any, Any, Any]) -> Response[str]:
        return await pages.sign_in(request)

    @get("/ui/logout", include_in_schema=False, sync_to_thread=False)
    def sign_out_page(request: Request[Any, Any, Any], asker: AskedBy) -> Response[str]:
        return pages.signing_out(request, asker)

    @post("/ui/logout", include_in_schema=False, status_code=303)
    async def sign_out(request: Request[Any, Any, Any], asker: AskedBy) -> Response[str]:
        return await pages.sign_out(request, asker)

    @get(STYLE, include_in_schema=False, sync_to_thread=False)
    def sheet() -> Response[bytes]:
        return Response(style(), media_type="text/css", headers={"cache-control": "max-age=3600"})

    return [sign_in_page, sign_in, sign_out_page, sign_out, sheet]


def stale_form() -> Response[str]:
    """Return the answer to a form that was not made for who sends it."""
    return Response(refused_page(stale_form_error()), status_code=403, media_type=MediaType.HTML)


def own_path(asked: str) -> str:
    """Return where a sign-in leads: a page of this server, whatever the address said."""
    try:
        parts = urlsplit(asked)
    except ValueError:
        return _HOME
    is_plain = asked.isascii() and asked.isprintable() and "\\" not in asked and len(asked) <= _LONGEST_NEXT
    is_own = not parts.scheme and not parts.netloc and parts.path.startswith("/ui/") and "//" not in parts.path
    return asked if is_plain and is_own and not parts.path.startswith(SIGN_IN) else _HOME


def _to(place: str) -> Response[str]:
    return Response("", status_code=303, headers={"location": place}, media_type=MediaType.HTML)


def _cookie(access: Access, name: str, value: str, *, path: str = "/", max_age: int | None = None) -> Cookie:
    return Cookie(
        name, path=path, value=value, max_age=max_age, secure=access.is_https, httponly=True, samesite="strict"
    )
