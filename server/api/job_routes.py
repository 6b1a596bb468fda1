"""``/jobs``: submit, look at, watch, pause, resume, stop, compare and delete jobs."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from litestar import delete, get, post
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter
from litestar.response import ServerSentEvent
from litestar.response.sse import ServerSentEventMessage

from server.api.asked_by import AskedBy  # noqa: TC001 Litestar reads the handlers' types
from server.api.schema import JobChange, JobList, JobStatus, Submission
from server.client.client import KEEP_ALIVE_S
from server.errors import NoSuchJobError
from server.storage import queries
from server.views.compare import compare_jobs
from server.views.explain import explain
from server.views.history import job_history
from server.views.summary import job_list, job_shown, job_summary

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from litestar.handlers import HTTPRouteHandler

    from server.queue.operations import Operations

_LOOK_S = 0.25
"""Seconds between two looks for new events of a watched job."""
_ENDED = ("paused", "stopped", "finished", "failed")


def job_routes(operations: Operations) -> list[HTTPRouteHandler]:
    """Return the routes.

    Args:
        operations: does what is asked.
    """
    return [*_reading(operations), *_acting(operations)]


def _reading(operations: Operations) -> list[HTTPRouteHandler]:
    ledger = operations.ledger

    @get("/jobs", sync_to_thread=True)
    def jobs() -> JobList:
        """List all jobs, oldest first."""
        return JobList([_status(summary) for summary in job_list(ledger)])

    @get("/jobs/{name:str}", sync_to_thread=True)
    def show(name: FromPath[str]) -> dict[str, Any]:
        """Show a job: its status, every attempt at every round, and what each device did."""
        return job_shown(ledger, name)

    @get("/jobs/{name:str}/history", sync_to_thread=True)
    def history(name: FromPath[str]) -> dict[str, Any]:
        """Show a job with what became of each offer, and the arms that were chosen."""
        return job_history(ledger, name)

    @get("/jobs/{name:str}/compare/{other:str}", sync_to_thread=True)
    def compare(name: FromPath[str], other: FromPath[str]) -> dict[str, Any]:
        """Compare two jobs: losses and accuracies by round, time and bytes."""
        return compare_jobs(ledger, name, other)

    @get("/jobs/{name:str}/explain", sync_to_thread=True)
    def explained(
        name: FromPath[str], round_index: Annotated[int, QueryParameter(name="round", ge=0)], device: FromQuery[str]
    ) -> dict[str, Any]:
        """Say why a device was given its arm in a round."""
        return explain(ledger, name, round_index, device)

    @get("/jobs/{name:str}/events", media_type="text/event-stream")
    async def events(name: FromPath[str], after: Annotated[int, QueryParameter(ge=0)] = 0) -> ServerSentEvent:
        """Follow a job's events, from the oldest that is kept (or after an event's number), until the job has ended.

        A comment line every ten seconds shows that a connection without events is alive.
        """
        if queries.find_job(ledger, name) is None:
            raise NoSuchJobError(name)
        return ServerSentEvent(_follow(operations, name, after))

    return [jobs, show, history, compare, explained, events]


def _acting(operations: Operations) -> list[HTTPRouteHandler]:
    @post("/jobs", status_code=201, sync_to_thread=True)
    def submit(data: JSONBody[Submission], asker: AskedBy) -> JobStatus:
        """Enter a job in the queue."""
        name = operations.submit(
            data.job, data.bundle, data.after, data.priority, allow_absent=data.allow_absent, asker=asker
        )
        return _status(job_summary(operations.ledger, name))

    @post("/jobs/{name:str}/pause", status_code=200, sync_to_thread=True)
    def pause(name: FromPath[str], asker: AskedBy) -> JobChange:
        """Pause a job once its open round is over."""
        return JobChange(name, operations.pause(name, asker))

    @post("/jobs/{name:str}/resume", status_code=200, sync_to_thread=True)
    def resume(name: FromPath[str], asker: AskedBy) -> JobChange:
        """Queue a job again that was paused or stopped, or has failed."""
        operations.resume(name, asker)
        return JobChange(name, "queued")

    @post("/jobs/{name:str}/stop", status_code=200, sync_to_thread=True)
    def stop(name: FromPath[str], asker: AskedBy) -> JobChange:
        """Stop a job at once; its closed rounds stay."""
        operations.stop(name, asker)
        return JobChange(name, "stopped")

    @delete("/jobs/{name:str}", status_code=200, sync_to_thread=True)
    def discard(name: FromPath[str], asker: AskedBy) -> JobChange:
        """Delete a job that is not at work, with its result."""
        operations.delete(name, asker)
        return JobChange(name, "deleted")

    return [submit, pause, resume, stop, discard]


def _status(summary: dict[str, Any]) -> JobStatus:
    return msgspec.convert(summary, JobStatus)


async def _follow(operations: Operations, name: str, after: int) -> AsyncIterator[ServerSentEventMessage]:
    now_s = asyncio.get_running_loop().time
    said_at = now_s()
    while True:
        record = queries.find_job(operations.ledger, name)  # before the events: none that follow are missed
        for number, event in operations.supervisor.feed.since(name, after):
            after, said_at = number, now_s()
            yield ServerSentEventMessage(data=msgspec.json.encode(event).decode(), id=number)
        if record is None or record.state in _ENDED:
            state = "deleted" if record is None else record.state
            ended = {"event": "ended", "job": name, "state": state, "reason": None if record is None else record.reason}
            yield ServerSentEventMessage(data=msgspec.json.encode(ended).decode())
            return
        if now_s() - said_at >= KEEP_ALIVE_S:
            said_at = now_s()
            yield ServerSentEventMessage(data=None, comment="alive")
        await asyncio.sleep(_LOOK_S)
