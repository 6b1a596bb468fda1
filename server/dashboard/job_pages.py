"""Pages of jobs: all of them, and one with its rounds and devices."""

from __future__ import annotations

from typing import TYPE_CHECKING

from litestar import MediaType, get

from server.dashboard.templates import render
from server.views.summary import job_list

if TYPE_CHECKING:
    from litestar.handlers import HTTPRouteHandler

    from server.queue.operations import Operations


def job_pages(operations: Operations, api_prefix: str) -> list[HTTPRouteHandler]:
    """Return the routes.

    Args:
        operations: the operator's side of the server.
        api_prefix: path of the API, where a job's events are.
    """
    del api_prefix
    ledger = operations.ledger

    @get("/jobs", media_type=MediaType.HTML, sync_to_thread=True)
    def jobs() -> str:
        return render("jobs.html.jinja", {"here": "/ui/jobs", "jobs": job_list(ledger)[::-1]})

    return [jobs]
