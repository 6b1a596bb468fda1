"""The routes under ``/ui``; whoever serves them adds the guard that the API's routes have too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litestar import MediaType, Request, Response, Router, get
from litestar.exceptions import HTTPException
from litestar.response import Redirect
from litestar.static_files import create_static_files_router

from edge_runtime.errors import CoveyError, as_covey_error
from server.dashboard.device_pages import device_pages
from server.dashboard.job_pages import job_pages
from server.dashboard.other_pages import other_pages
from server.dashboard.templates import STATIC, render
from server.errors import NoSuchDeviceError, NoSuchJobError, RolloutError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from litestar.handlers import HTTPRouteHandler

    from server.queue.operations import Operations

PREFIX = "/ui"
_NOT_FOUND = (NoSuchJobError, NoSuchDeviceError, RolloutError)
"""What a page raises where what it should show is not there."""


def make_dashboard(
    operations: Operations, api_prefix: str, refused: Callable[[], Mapping[str, int]]
) -> list[Router | HTTPRouteHandler]:
    """Return the routes of all pages.

    Args:
        operations: the operator's side of the server; pages only read.
        api_prefix: path of the API, where a job's events are.
        refused: returns how many messages were refused since the start, by ``DEVICE: REASON``.
    """
    pages = Router(
        PREFIX,
        route_handlers=[
            *device_pages(operations, refused),
            *job_pages(operations, api_prefix),
            *other_pages(operations),
        ],
        exception_handlers={CoveyError: _refused, HTTPException: _bad_request, Exception: _fault},
        include_in_schema=False,
    )
    files = create_static_files_router(f"{PREFIX}/static", [STATIC], include_in_schema=False)
    return [_home, pages, files]


@get("/", include_in_schema=False, sync_to_thread=False)
def _home() -> Redirect:
    return Redirect(f"{PREFIX}/")


def _page(status: int, what: str, hint: str) -> Response[str]:
    page = render("error.html.jinja", {"here": "", "status": status, "what": what, "hint": hint})
    return Response(page, status_code=status, media_type=MediaType.HTML)


def _refused(_request: Request[Any, Any, Any], error: CoveyError) -> Response[str]:
    return _page(404 if isinstance(error, _NOT_FOUND) else 409, error.what, error.hint)


def _bad_request(_request: Request[Any, Any, Any], error: HTTPException) -> Response[str]:
    hint = "Sign in with the token in the file api-token." if error.status_code == 401 else "Go back to the page."
    return _page(error.status_code, error.detail, hint)


def _fault(_request: Request[Any, Any, Any], error: Exception) -> Response[str]:
    found = as_covey_error(error)
    return _page(500, found.what, found.hint)
