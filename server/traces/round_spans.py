"""Turns the events of jobs into spans: one trace for each attempt at a round.

::

    covey.round                      from the end of the round before to the adapter, or to giving up
    ├── covey.plan                   from the same moment (at first: the job's first event) to the offer
    ├── covey.report   (one each)    from the offer to a device's report, or to its refusal or loss
    ├── covey.aggregation            from the last report to the adapter
    └── covey.evaluation             from the adapter to its held-out loss; ends after covey.round

Every span has ``covey.job`` and ``covey.round``, and most have ``covey.attempt``; a report has ``covey.device`` and
``covey.arm``. Times are those at which the server learned of something.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.context import Context

from server import events

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.trace import Span, Tracer

    from server.events import Event

_ROOT = Context()
"""Without a parent: a round is a trace of its own."""
_KEPT_ROUNDS = 8
"""An evaluation that comes more rounds later than this gets no span: rounds without one leave nothing behind."""


@dataclass
class _Open:
    """The open round of a job."""

    span: Span
    context: Context
    index: int
    attempt: int
    opened_ns: int
    arms: dict[str, str]
    reported_ns: int | None = None
    reports: int = 0


class RoundSpans:
    """Makes spans from the events of a server's jobs. Call ``take`` from one thread.

    Args:
        tracer: makes the spans.
        now_ns: returns the time, in nanoseconds since 1970.
    """

    def __init__(self, tracer: Tracer, now_ns: Callable[[], int]) -> None:
        self._tracer, self._now_ns = tracer, now_ns
        self._open: dict[str, _Open] = {}
        self._idle_since_ns: dict[str, int] = {}
        self._closed: dict[str, dict[int, tuple[Context, int]]] = {}

    def take(self, job: str | None, event: Event) -> None:
        """Take in an event of a job; None: the fleet's, of which no span is made."""
        if job is None:
            return
        now_ns = self._now_ns()
        self._idle_since_ns.setdefault(job, now_ns)
        match event:
            case events.RoundOpened():
                self._give_up(job, now_ns, "the server did not finish it")
                self._begin(job, event, now_ns)
            case events.ReportTaken() | events.OfferFailed():
                self._report(job, event, now_ns)
            case events.RoundClosed():
                self._close(job, event, now_ns)
            case events.RoundAbandoned():
                self._give_up(job, now_ns, "too few reports")
            case events.Evaluated():
                self._evaluated(job, event, now_ns)
            case events.JobChanged():
                self._give_up(job, now_ns, f"the job is {event.state}")
                self._idle_since_ns.pop(job, None)
                self._closed.pop(job, None)
            case _:
                pass

    def end(self) -> None:
        """End the spans of rounds that are open: the server ends."""
        for job in list(self._open):
            self._give_up(job, self._now_ns(), "the server ended")

    def _begin(self, job: str, event: events.RoundOpened, now_ns: int) -> None:
        attributes: dict[str, str | int | float] = {"covey.job": job, "covey.round": event.round}
        attributes |= {"covey.attempt": event.attempt, "covey.devices": len(event.devices)}
        since_ns = self._idle_since_ns[job]
        span = self._tracer.start_span("covey.round", context=_ROOT, start_time=since_ns, attributes=attributes)
        context = trace.set_span_in_context(span, _ROOT)
        self._span("covey.plan", context, since_ns, now_ns, attributes)
        self._open[job] = _Open(span, context, event.round, event.attempt, now_ns, dict(event.arms))

    def _report(self, job: str, event: events.ReportTaken | events.OfferFailed, now_ns: int) -> None:
        round_ = self._open.get(job)
        if round_ is None or round_.index != event.round:
            return  # a round that was open when the server was started again has no span
        attributes: dict[str, str | int | float] = {**_named(job, round_), "covey.device": event.device}
        if event.device in round_.arms:
            attributes["covey.arm"] = round_.arms[event.device]
        if isinstance(event, events.OfferFailed):
            self._span("covey.report", round_.context, round_.opened_ns, now_ns, attributes, event.reason)
            return
        attributes |= {"covey.seconds": event.seconds, "covey.bytes_up": event.bytes_up}
        if event.loss is not None:
            attributes["covey.train_loss"] = event.loss
        self._span("covey.report", round_.context, round_.opened_ns, now_ns, attributes)
        round_.reported_ns, round_.reports = now_ns, round_.reports + 1

    def _close(self, job: str, event: events.RoundClosed, now_ns: int) -> None:
        self._idle_since_ns[job] = now_ns
        round_ = self._open.pop(job, None)
        if round_ is None:
            return
        began_ns = round_.opened_ns if round_.reported_ns is None else round_.reported_ns
        attributes = {**_named(job, round_), "covey.reports": event.reports}
        self._span("covey.aggregation", round_.context, began_ns, now_ns, attributes)
        round_.span.set_attribute("covey.reports", event.reports)
        round_.span.set_attribute("covey.adapter_sha256", event.adapter_sha256)
        round_.span.end(now_ns)
        closed = self._closed.setdefault(job, {})
        closed[event.round] = (round_.context, now_ns)
        while len(closed) > _KEPT_ROUNDS:
            del closed[min(closed)]

    def _evaluated(self, job: str, event: events.Evaluated, now_ns: int) -> None:
        found = None if event.round is None else self._closed.get(job, {}).pop(event.round, None)
        if found is None or event.round is None:
            return
        context, closed_ns = found
        attributes: dict[str, str | int | float] = {"covey.job": job, "covey.round": event.round}
        attributes |= {"covey.loss": event.loss, "covey.accuracy": event.accuracy}
        self._span("covey.evaluation", context, closed_ns, now_ns, attributes)

    def _give_up(self, job: str, now_ns: int, why: str) -> None:
        round_ = self._open.pop(job, None)
        if round_ is not None:
            self._idle_since_ns[job] = now_ns
            round_.span.set_attribute("covey.reports", round_.reports)
            round_.span.set_status(trace.StatusCode.ERROR, why)
            round_.span.end(now_ns)

    def _span(
        self,
        name: str,
        context: Context,
        began_ns: int,
        now_ns: int,
        attributes: dict[str, str | int | float],
        failed: str | None = None,
    ) -> None:
        """Make a span that is over."""
        span = self._tracer.start_span(name, context=context, start_time=began_ns, attributes=attributes)
        if failed is not None:
            span.set_status(trace.StatusCode.ERROR, failed)
        span.end(now_ns)


def _named(job: str, round_: _Open) -> dict[str, str | int | float]:
    return {"covey.job": job, "covey.round": round_.index, "covey.attempt": round_.attempt}
