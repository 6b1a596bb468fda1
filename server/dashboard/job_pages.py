"""Pages of jobs: all of them, and one with its rounds and devices, which follows the job's events."""

from __future__ import annotations

from typing import TYPE_CHECKING

from litestar import MediaType, get
from litestar.params import FromPath

from server.dashboard.charts import arm_chart, job_charts
from server.dashboard.templates import render
from server.storage import queries
from server.views.bandit import bandit_shown
from server.views.summary import job_list, job_shown

if TYPE_CHECKING:
    from litestar.handlers import HTTPRouteHandler

    from server.queue.operations import Operations

_HERE = "/ui/jobs"
_MOST_DEVICES = 200
"""Devices of a job that its page names."""
_MOST_ATTEMPTS = 200
"""Attempts at rounds in the table of a job's page, the newest; the charts' tables have all rounds."""
_LIVE = ("queued", "running")
_ACTIONS = {
    "queued": {"pause": "Pause", "stop": "Stop"},
    "running": {"pause": "Pause", "stop": "Stop"},
    "paused": {"resume": "Start again", "stop": "Stop"},
    "stopped": {"resume": "Start again"},
    "failed": {"resume": "Start again"},
}


def job_pages(operations: Operations, api_prefix: str) -> list[HTTPRouteHandler]:
    """Return the routes.

    Args:
        operations: the operator's side of the server.
        api_prefix: path of the API, where a job's events are.
    """
    ledger = operations.ledger

    @get("/jobs", media_type=MediaType.HTML, sync_to_thread=True)
    def jobs() -> str:
        return render("jobs.html.jinja", {"here": _HERE, "jobs": job_list(ledger)[::-1]})

    @get("/jobs/{name:str}", media_type=MediaType.HTML, sync_to_thread=True)
    def job(name: FromPath[str]) -> str:
        seen = operations.supervisor.feed.since(name, 0)  # before the ledger is read: what follows is shown later
        shown = job_shown(ledger, name)
        context = {
            "here": _HERE,
            "job": shown,
            "events": f"{api_prefix}/jobs/{{}}/events?after={seen[-1][0] if seen else 0}",
            "is_live": shown["state"] in _LIVE,
            "charts": job_charts(shown, shown["round_list"], queries.passes_per_round(ledger, name)),
            "attempts": shown["round_list"][: -_MOST_ATTEMPTS - 1 : -1],
            "devices": shown["device_list"][:_MOST_DEVICES],
            "actions": _ACTIONS.get(shown["state"], {}),
        }
        return render("job.html.jinja", context)

    @get("/jobs/{name:str}/bandit", media_type=MediaType.HTML, sync_to_thread=True)
    def bandit(name: FromPath[str]) -> str:
        shown = bandit_shown(ledger, name)
        choices = shown["choice_list"][:_MOST_DEVICES]
        context = {"here": _HERE, "bandit": shown, "charts": [arm_chart(shown)], "choices": choices}
        return render("bandit.html.jinja", context)

    return [jobs, job, bandit]
