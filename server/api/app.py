"""The application: version 1 of the operator's API, with its OpenAPI description at ``/api/v1/schema/openapi.json``."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Any

from litestar import Litestar, Request, Response, Router
from litestar.exceptions import HTTPException, NotAuthorizedException, ValidationException
from litestar.openapi.config import OpenAPIConfig

from edge_runtime import __version__
from edge_runtime.errors import ConfigError, CoveyError, as_covey_error, wall
from server.api.device_routes import device_routes
from server.api.job_routes import job_routes
from server.api.metrics_route import metrics_route
from server.api.rollout_routes import rollout_routes
from server.api.schema import Problem
from server.api.server_routes import server_routes
from server.api.trust_routes import trust_routes
from server.errors import NoSuchJobError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from litestar.connection import ASGIConnection
    from litestar.handlers import BaseRouteHandler
    from litestar.types import ControllerRouterHandler

    from server.api.schema import ServerStatus
    from server.queue.operations import Operations

API_VERSION = 1
PREFIX = f"/api/v{API_VERSION}"
_STATUS = {NoSuchJobError: 404, ConfigError: 422}


def make_api(
    operations: Operations,
    status: Callable[[], ServerStatus],
    metrics: Callable[[], bytes],
    actor: str,
    token: str | None,
    pages: Sequence[ControllerRouterHandler] = (),
) -> Litestar:
    """Return the application.

    Args:
        operations: does what is asked.
        status: tells what the server is doing.
        metrics: returns what Prometheus scrapes.
        actor: who asks over this application, for the audit.
        token: what every request must carry (``Authorization: Bearer TOKEN``); None: whoever can connect may ask.
        pages: routes of the dashboard, behind the same guard.
    """
    handlers = [
        *server_routes(status),
        *job_routes(operations, actor),
        *device_routes(operations, actor),
        *trust_routes(operations, actor),
        *rollout_routes(operations, actor),
    ]
    return Litestar(
        [Router(PREFIX, route_handlers=handlers), metrics_route(metrics), *pages],
        request_class=_Request,
        middleware=[_with_host],
        guards=[] if token is None else [_needs(token)],
        exception_handlers={CoveyError: _refused, HTTPException: _bad_request, Exception: _fault},
        openapi_config=OpenAPIConfig(
            title="Covey", version=f"{API_VERSION} (Covey {__version__})", path=f"{PREFIX}/schema", render_plugins=[]
        ),
        logging_config=None,
    )


def _with_host(app: Any) -> Any:  # noqa: ANN401 ASGI applications
    """Return an application that gives a request without a host one: Litestar fails on it behind a socket's path."""

    async def hosted(scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401
        if scope["type"] == "http" and not dict(scope["headers"]).get(b"host", b"").strip():
            others = [pair for pair in scope["headers"] if pair[0] != b"host"]
            scope["headers"] = [*others, (b"host", b"localhost")]
        await app(scope, receive, send)

    return hosted


class _Request(Request[Any, Any, Any]):
    """A request whose body may be anything: Litestar's own lets UnicodeDecodeError and RecursionError through."""

    async def json(self) -> Any:  # noqa: ANN401 as Litestar has it
        """Return the body's value.

        Raises:
            ConfigError: it is no JSON.
        """
        with wall(lambda cause: ConfigError(f"the request's body is no JSON: {cause}", f"see {PREFIX}/schema")):
            return await super().json()


def _needs(token: str) -> Callable[[ASGIConnection[Any, Any, Any, Any], BaseRouteHandler], None]:
    """Return a guard that lets nobody pass without the token."""

    def guard(connection: ASGIConnection[Any, Any, Any, Any], _handler: BaseRouteHandler) -> None:
        given = connection.headers.get("authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
            raise NotAuthorizedException("the token is missing or wrong")

    return guard


def _answer(status: int, error: CoveyError) -> Response[Problem]:
    return Response(Problem(error.what, error.hint, error.exit_code), status_code=status)


def _refused(_request: Request[Any, Any, Any], error: CoveyError) -> Response[Problem]:
    return _answer(_STATUS.get(type(error), 409), error)


def _bad_request(_request: Request[Any, Any, Any], error: HTTPException) -> Response[Problem]:
    if isinstance(error, NotAuthorizedException):
        hint = "give the content of api-token in the server's state directory: --token-file, or COVEY_TOKEN"
        return _answer(401, ConfigError(error.detail, hint))
    what = error.detail
    if isinstance(error, ValidationException) and error.extra:
        what = "; ".join(
            str(problem["message"]) if isinstance(problem, dict) and "message" in problem else str(problem)
            for problem in error.extra
        )
    return _answer(error.status_code, ConfigError(f"the request is refused: {what}", f"see {PREFIX}/schema"))


def _fault(_request: Request[Any, Any, Any], error: Exception) -> Response[Problem]:
    return _answer(500, as_covey_error(error))
