"""``/audit``: who asked for which change, from where, and what became of it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import msgspec
from litestar import get
from litestar.params import FromQuery, QueryParameter

from edge_runtime.errors import ConfigError
from server.api.audit_schema import AuditPage
from server.views.audit import LARGEST_PAGE, audit_page

if TYPE_CHECKING:
    from litestar.handlers import HTTPRouteHandler

    from server.queue.operations import Operations

_TIME = re.compile(r"\d{4}-\d\d-\d\d( \d\d:\d\d:\d\d)?", re.ASCII)
PageSize = Annotated[int, QueryParameter(ge=1, le=LARGEST_PAGE)]


def audit_routes(operations: Operations) -> list[HTTPRouteHandler]:
    """Return the routes; ``operations`` has the ledger."""

    @get("/audit", sync_to_thread=True)
    def audit(
        most: PageSize = 100,
        before: Annotated[int | None, QueryParameter(ge=1)] = None,
        since: FromQuery[str | None] = None,
    ) -> AuditPage:
        """List what operators asked for, the newest first; ``next_before`` of an answer is ``before`` of the next."""
        if since is not None and _TIME.fullmatch(since) is None:
            raise ConfigError(f"{since!r} is not a time", "write it in UTC as 2026-11-28 or 2026-11-28 12:00:00")
        return msgspec.convert(audit_page(operations.ledger, most, before, since), AuditPage)

    return [audit]
