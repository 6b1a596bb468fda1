"""``GET /metrics``: what Prometheus scrapes; outside the API's versions, where Prometheus looks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from litestar import Response, get

from server.metrics.text import CONTENT_TYPE

if TYPE_CHECKING:
    from collections.abc import Callable

    from litestar.handlers import HTTPRouteHandler


def metrics_route(metrics: Callable[[], bytes]) -> HTTPRouteHandler:
    """Return the route; ``metrics`` returns the text."""

    @get("/metrics", sync_to_thread=True, include_in_schema=False)
    def scraped() -> Response[bytes]:
        return Response(metrics(), media_type=CONTENT_TYPE)

    return scraped
