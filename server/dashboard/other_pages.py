"""Pages of rollouts, of devices that wait for approval, and of what operators did."""

from __future__ import annotations

from typing import TYPE_CHECKING

from litestar import MediaType, get
from litestar.params import FromPath

from server.dashboard.templates import render
from server.storage import audit_queries

if TYPE_CHECKING:
    from litestar.handlers import HTTPRouteHandler

    from server.queue.operations import Operations

_AUDIT_ROWS = 200
"""Entries of the audit that its page shows."""


def other_pages(operations: Operations) -> list[HTTPRouteHandler]:
    """Return the routes; ``operations`` is the operator's side of the server."""

    @get("/rollouts", media_type=MediaType.HTML, sync_to_thread=True)
    def rollouts() -> str:
        return render("rollouts.html.jinja", {"here": "/ui/rollouts", "rollouts": operations.rollouts.list()[::-1]})

    @get("/rollouts/{number:int}", media_type=MediaType.HTML, sync_to_thread=True)
    def rollout(number: FromPath[int]) -> str:
        return render("rollout.html.jinja", {"here": "/ui/rollouts", "rollout": operations.rollouts.show(number)})

    @get("/joins", media_type=MediaType.HTML, sync_to_thread=True)
    def joins() -> str:
        return render("joins.html.jinja", {"here": "/ui/joins", "joins": operations.trust.pending()})

    @get("/audit", media_type=MediaType.HTML, sync_to_thread=True)
    def audit() -> str:
        entries = audit_queries.audit_of(operations.ledger, _AUDIT_ROWS)
        return render("audit.html.jinja", {"here": "/ui/audit", "entries": entries, "most": _AUDIT_ROWS})

    return [rollouts, rollout, joins, audit]
