"""Lets nobody use an application but members of the fleet, by the certificate of their TLS connection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse

from edge_runtime.network.http_causes import NO_MEMBER

if TYPE_CHECKING:
    from collections.abc import Callable

MEMBER = "covey_member"
"""Key of a scope: the name of the member that asks."""


def members_only(app: Any, admits: Callable[[bytes], str | None]) -> Any:  # noqa: ANN401 ASGI applications
    """Return an application that answers 403 to whoever is no member.

    Args:
        app: the application.
        admits: returns the name of the member that a certificate (DER) belongs to; None: it is no member's.
    """

    async def guarded(scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401
        if scope["type"] == "http":
            certificate = scope.get("extensions", {}).get("tls", {}).get("client_certificate")
            name = None if certificate is None else admits(certificate)
            if name is None:
                refusal = {
                    "error": NO_MEMBER,
                    "hint": "join with a new token: covey fleet token NAME",
                }
                await JSONResponse(refusal, 403)(scope, receive, send)
                return
            scope = {**scope, MEMBER: name}
        await app(scope, receive, send)

    return guarded
