"""The application: version 1 of the operator's API, with its OpenAPI description at ``/api/v1/schema/openapi.json``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litestar import Litestar, Request, Response, Router
from litestar.exceptions import HTTPException, ValidationException
from litestar.openapi.config import OpenAPIConfig

from edge_runtime import __version__
from edge_runtime.errors import ConfigError, CoveyError, as_covey_error, wall
from server.access.gate import Gate
from server.api.action_routes import action_routes
from server.api.asked_by import asker_dependencies
from server.api.audit_routes import audit_routes
from server.api.board_routes import board_routes
from server.api.device_routes import device_routes
from server.api.job_routes import job_routes
from server.api.metrics_route import metrics_route
from server.api.order_routes import order_routes
from server.api.rollout_routes import rollout_routes
from server.api.schema import Problem
from server.api.server_routes import server_routes
from server.api.sign_in_routes import sign_in_routes
from server.api.statuses import status_of
from server.api.trust_routes import trust_routes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from litestar.types import ControllerRouterHandler

    from server.access.gate import Access
    from server.api.schema import ServerStatus
    from server.queue.operations import Operations

API_VERSION = 1
PREFIX = f"/api/v{API_VERSION}"


def make_api(
    operations: Operations,
    status: Callable[[], ServerStatus],
    metrics: Callable[[], bytes],
    access: Access,
    pages: Sequence[ControllerRouterHandler] = (),
) -> Gate:
    """Return the application, behind its gate.

    Args:
        operations: does what is asked.
        status: tells what the server is doing.
        metrics: returns what Prometheus scrapes.
        access: who may use it.
        pages: routes of the dashboard, behind the same gate.
    """
    handlers = [
        *server_routes(status),
        *job_routes(operations),
        *device_routes(operations, lambda: status().refused),
        *trust_routes(operations),
        *rollout_routes(operations),
        *audit_routes(operations),
        *board_routes(operations),
    ]
    forms = [
        *sign_in_routes(operations, access),
        *action_routes(operations, access),
        *order_routes(operations, access),
    ]
    app = Litestar(
        [Router(PREFIX, route_handlers=handlers), metrics_route(metrics), *forms, *pages],
        request_class=_Request,
        middleware=[_with_host],
        dependencies=asker_dependencies(),
        exception_handlers={CoveyError: _refused, HTTPException: _bad_request, Exception: _fault},
        openapi_config=OpenAPIConfig(
            title="Covey", version=f"{API_VERSION} (Covey {__version__})", path=f"{PREFIX}/schema", render_plugins=[]
        ),
        logging_config=None,
    )
    return Gate(app, access)


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


def _answer(status: int, error: CoveyError) -> Response[Problem]:
    return Response(Problem(error.what, error.hint, error.exit_code), status_code=status)


def _refused(_request: Request[Any, Any, Any], error: CoveyError) -> Response[Problem]:
    return _answer(status_of(error), error)


def _bad_request(_request: Request[Any, Any, Any], error: HTTPException) -> Response[Problem]:
    what = error.detail
    if isinstance(error, ValidationException) and error.extra:
        what = "; ".join(
            str(problem["message"]) if isinstance(problem, dict) and "message" in problem else str(problem)
            for problem in error.extra
        )
    return _answer(error.status_code, ConfigError(f"the request is refused: {what}", f"see {PREFIX}/schema"))


def _fault(_request: Request[Any, Any, Any], error: Exception) -> Response[Problem]:
    return _answer(500, as_covey_error(error))
