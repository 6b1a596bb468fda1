"""``GET /server``: what the server is doing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from litestar import get

from server.api.schema import ServerStatus  # noqa: TC001 Litestar reads the types of its routes

if TYPE_CHECKING:
    from collections.abc import Callable

    from litestar.handlers import HTTPRouteHandler


def server_routes(status: Callable[[], ServerStatus]) -> list[HTTPRouteHandler]:
    """Return the routes; ``status`` tells what the server is doing."""

    @get("/server", sync_to_thread=True)
    def server() -> ServerStatus:
        """Show the server: its version, its fleet, its ports, and which jobs are at work."""
        return status()

    return [server]
