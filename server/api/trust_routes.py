"""``/tokens``, ``/joins`` and the identities of ``/devices``: who may join, who must leave, who is named otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litestar import get, post
from litestar.params import FromPath, JSONBody

from server.api.asked_by import AskedBy  # noqa: TC001 Litestar reads the handlers' types
from server.api.schema import JoinList, JoinWaiting, NewName, TokenOrder, TokensMade

if TYPE_CHECKING:
    from litestar.handlers import HTTPRouteHandler

    from server.queue.operations import Operations


def trust_routes(operations: Operations) -> list[HTTPRouteHandler]:
    """Return the routes.

    Args:
        operations: does what is asked.
    """
    trust = operations.trust

    @post("/tokens", status_code=201, sync_to_thread=True)
    def tokens(data: JSONBody[TokenOrder], asker: AskedBy) -> TokensMade:
        """Make one-time join tokens; this is the only time that they are shown."""
        return TokensMade(trust.tokens(data.names, data.server_url, data.valid_s, asker))

    @get("/joins", sync_to_thread=True)
    def joins() -> JoinList:
        """List the devices that wait for approval."""
        return JoinList([JoinWaiting(**one) for one in trust.pending()])

    @post("/devices/{name:str}/approve", status_code=200, sync_to_thread=True)
    def approve(name: FromPath[str], asker: AskedBy) -> dict[str, Any]:
        """Approve a device that waits."""
        trust.decide(name, "approved", asker)
        return {"device": name, "state": "approved"}

    @post("/devices/{name:str}/reject", status_code=200, sync_to_thread=True)
    def reject(name: FromPath[str], asker: AskedBy) -> dict[str, Any]:
        """Reject a device that waits."""
        trust.decide(name, "rejected", asker)
        return {"device": name, "state": "rejected"}

    @post("/devices/{name:str}/revoke", status_code=200, sync_to_thread=True)
    def revoke(name: FromPath[str], asker: AskedBy) -> dict[str, Any]:
        """Revoke a device's certificates and its tokens that are not used."""
        return {"device": name, "state": "revoked", "certificates": trust.revoke(name, asker)}

    @post("/devices/{name:str}/release", status_code=200, sync_to_thread=True)
    def release(name: FromPath[str], asker: AskedBy) -> dict[str, Any]:
        """Let a device out of quarantine."""
        trust.release(name, asker)
        return {"device": name, "state": "released"}

    @post("/devices/{name:str}/rename", status_code=200, sync_to_thread=True)
    def rename(name: FromPath[str], data: JSONBody[NewName], asker: AskedBy) -> dict[str, Any]:
        """Give a device another name, which it takes when it asks the server next."""
        trust.rename(name, data.name, asker)
        return {"device": name, "new_name": data.name, "state": "renamed"}

    return [tokens, joins, approve, reject, revoke, release, rename]
