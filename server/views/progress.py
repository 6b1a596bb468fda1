"""Shows the progress of a job: a live table on a terminal, plain lines elsewhere, JSON lines for programs."""

from __future__ import annotations

import contextlib
import statistics
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from edge_runtime.output import printable
from server import events
from server.views.at_work import AtWork
from server.views.status import duration_text, seconds_left, waiting_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from server.events import Event, Observer

_COLUMNS = (
    "round",
    "reports",
    "slowest",
    "bytes up",
    "bytes down",
    "train loss",
    "held-out loss",
    "accuracy",
    "adapter",
)
_SHOWN_ROUNDS = 12
"""The table shows this many of the last rounds."""


class _Row:
    """A row of the table: one round. Its reports are kept by device, so that an event that comes again counts once."""

    def __init__(self) -> None:
        self.offered = 0
        self.reports: dict[str, events.ReportTaken] = {}
        self.status = "open"
        self.evaluation: events.Evaluated | None = None
        self.kept: dict[str, Any] | None = None  # the ledger's entry, once the round is over

    def cells(self) -> tuple[str, ...]:
        """Return reports, slowest, bytes up and down, and train loss; the ledger's figures where it has them."""
        kept, taken = self.kept or {}, self.reports.values()
        losses = [report.loss for report in taken if report.loss is not None]
        reports = kept.get("reports", len(taken))
        slowest_s = kept.get("slowest_s", max((report.seconds for report in taken), default=None))
        bytes_up = kept.get("bytes_up", sum(report.bytes_up for report in taken) if taken else None)
        train_loss = kept.get("train_loss", statistics.fmean(losses) if losses else None)
        return (
            f"{reports or 0}/{self.offered}",
            "" if slowest_s is None else f"{slowest_s:.1f} s",
            "" if bytes_up is None else str(bytes_up),
            "" if kept.get("bytes_down") is None else str(kept["bytes_down"]),
            "" if train_loss is None else f"{train_loss:.4f}",
        )


class Progress:
    """Collects a job's events and shows them.

    Args:
        name: name of the job.
        rounds: number of its rounds.
    """

    def __init__(self, name: str, rounds: int) -> None:
        self._name, self._wanted = name, rounds
        self._rows: dict[int, _Row] = {}
        self._states: dict[str, str] = {}
        self._start: events.Evaluated | None = None
        self._note = "waiting for devices"
        self._left_s: float | None = None
        self._at_work = AtWork()

    def restore(self, shown: dict[str, Any]) -> None:
        """Take over what the ledger says of the job: job_shown or job_history.

        A server that was started again has forgotten its events, and an old event may have been dropped.
        """
        if shown["loss_start"] is not None and self._start is None:
            self._start = events.Evaluated(round=None, loss=shown["loss_start"], accuracy=shown["accuracy_start"])
        for made in shown["round_list"]:
            row = self._row(made["round"])
            row.offered = made["offered"]
            row.kept = None if made["state"] == "open" else made
            row.status = {"open": "open", "abandoned": "again"}.get(made["state"]) or made["adapter_sha256"][:8]
            if made["loss"] is not None:
                row.evaluation = events.Evaluated(round=made["round"], loss=made["loss"], accuracy=made["accuracy"])
        self._left_s = seconds_left(shown["round_list"], shown["rounds_wanted"])
        self._at_work.restore(shown)

    def take(self, event: Event) -> str | None:
        """Take in an event; returns a line about it, or None for an event that is not shown as a line."""
        match event:
            case events.DeviceChanged():
                self._states[event.device] = event.state
                self._at_work.heard(event)
                if event.ineligible is not None and event.state == "online":
                    return f"{event.device} takes no work now: {event.ineligible}"
                return f"{event.device} is {event.state}" if event.state in ("lost", "offline") else None
            case events.Waiting() | events.JobChanged():
                return self._take_state(event)
            case events.Syncing():
                self._note = f"final adapter proved by {event.proved} of {event.devices} devices"
                return self._note if event.proved == event.devices else None
            case events.Evaluated():
                return self._take_evaluation(event)
            case _:
                return self._take_round(event)

    def _take_state(self, event: events.Waiting | events.JobChanged) -> str:
        if isinstance(event, events.Waiting):
            self._at_work.waits(event)
            self._note = waiting_text(event)
            return self._note
        self._note = event.state if event.reason is None else f"{event.state}: {event.reason}"
        return f"{event.job} is {self._note}"

    def _take_evaluation(self, event: events.Evaluated) -> str:
        if event.round is None:
            self._start = event
            return f"start: held-out loss {event.loss:.4f}, accuracy {event.accuracy:.3f}"
        self._row(event.round).evaluation = event
        return f"round {event.round}: held-out loss {event.loss:.4f}, accuracy {event.accuracy:.3f}"

    def _take_round(self, event: Event) -> str | None:
        match event:
            case events.NameDoubled():
                return f"two programs run as {event.device}: {' and '.join(event.starts)}"
            case events.RoundOpened():
                row = self._rows[event.round] = _Row()
                row.offered = len(event.devices)
                self._at_work.opened(event)
                self._note = f"round {event.round + 1} of {self._wanted}"
            case events.ReportTaken():
                self._row(event.round).reports[event.device] = event
                self._at_work.reported(event)
            case events.OfferFailed():
                self._at_work.failed(event)
                return f"round {event.round}: no report from {event.device}: {event.reason}"
            case events.RoundClosed():
                self._row(event.round).status = event.adapter_sha256[:8]
            case events.RoundAbandoned():
                self._row(event.round).status = "again"
                return f"round {event.round}: abandoned with {event.reports} reports; trying again"
            case _:
                pass
        return None

    def _row(self, index: int) -> _Row:
        return self._rows.setdefault(index, _Row())

    def table(self) -> Table:
        """Return the current table of rounds."""
        online = sum(state in ("online", "busy") for state in self._states.values())
        busy = sum(state == "busy" for state in self._states.values())
        left = "" if self._left_s is None else f"; about {duration_text(self._left_s)} left"
        caption = f"{online} devices online, {busy} at work"
        table = Table(title=Text(f"{self._name}: {printable(self._note)}{left}"), caption=caption)
        for column in _COLUMNS:
            table.add_column(column, justify="left" if column == "adapter" else "right")
        if self._start is not None:
            table.add_row("start", *[""] * 5, f"{self._start.loss:.4f}", f"{self._start.accuracy:.3f}", "")
        for index in sorted(self._rows)[-_SHOWN_ROUNDS:]:
            row = self._rows[index]
            loss = f"{row.evaluation.loss:.4f}" if row.evaluation else ""
            accuracy = f"{row.evaluation.accuracy:.3f}" if row.evaluation else ""
            table.add_row(str(index + 1), *row.cells(), loss, accuracy, row.status)
        return table

    def view(self) -> Group:
        """Return the table of rounds, and that of the devices in the open round below it."""
        return Group(self.table(), self._at_work.table())

    def away(self, cause: str) -> str:
        """Take in that the server is away; returns a line about it."""
        self._note = f"the server is away, and is asked again: {cause}"
        return self._note


@dataclass(frozen=True)
class Shown:
    """What shows a job's course.

    Attributes:
        observe: shows an event.
        restore: takes over what the ledger says of the job; see Progress.restore.
        away: says that the server is away, and why.
    """

    observe: Observer
    restore: Callable[[dict[str, Any]], None]
    away: Callable[[str], None]


@contextlib.contextmanager
def watch(name: str, rounds: int, output_format: str) -> Iterator[Observer]:
    """Yield an observer that shows a job's events; see shown."""
    with shown(name, rounds, output_format) as now:
        yield now.observe


@contextlib.contextmanager
def shown(name: str, rounds: int, output_format: str) -> Iterator[Shown]:
    """Yield what shows a job's course: JSON lines on stdout, else tables on a terminal, or lines, on stderr.

    Args:
        name: name of the job.
        rounds: number of its rounds.
        output_format: ``json`` or ``text``.
    """
    if output_format == "json":
        yield Shown(
            lambda event: print_json(msgspec.json.encode(event)),
            lambda _: None,
            lambda cause: print_json(msgspec.json.encode({"event": "server_away", "reason": cause})),
        )
        return
    progress = Progress(name, rounds)
    console = Console(stderr=True)
    if not console.is_terminal:

        def say(line: str | None) -> None:
            if line:
                console.print(printable(line), markup=False, highlight=False, soft_wrap=True)

        yield Shown(lambda event: say(progress.take(event)), progress.restore, lambda cause: say(progress.away(cause)))
        return
    with Live(progress.view(), console=console, refresh_per_second=4) as live:

        def after(change: Callable[..., object], *what: object) -> None:
            change(*what)
            live.update(progress.view())

        yield Shown(
            lambda event: after(progress.take, event),
            lambda summary: after(progress.restore, summary),
            lambda cause: after(progress.away, cause),
        )


def print_json(line: bytes) -> None:
    """Print one line of JSON on stdout at once."""
    sys.stdout.write(line.decode() + "\n")
    sys.stdout.flush()


@contextlib.contextmanager
def fleet_log(
    output_format: str,
) -> Iterator[tuple[Callable[[str | None, Event], None], Callable[[dict[str, Any]], None]]]:
    """Yield what shows a server's events (each with its job; None: the fleet's), and what shows its start.

    JSON lines on stdout, each with the field ``job``; else lines on stderr.

    Args:
        output_format: ``json`` or ``text``.
    """
    if output_format == "json":

        def as_json(job: str | None, event: Event) -> None:
            print_json(msgspec.json.encode({**msgspec.to_builtins(event), "job": job}))

        yield as_json, lambda described: print_json(msgspec.json.encode({"event": "serving", **described}))
        return
    console = Console(stderr=True)
    shown: dict[str | None, Progress] = {}

    def say(line: str) -> None:
        console.print(printable(line), markup=False, highlight=False, soft_wrap=True)

    def as_line(job: str | None, event: Event) -> None:
        progress = shown.setdefault(job, Progress(job or "", 0))
        if line := progress.take(event):
            say(line if job is None else f"{job}: {line}")

    yield as_line, lambda described: say("serving: " + ", ".join(f"{key} {value}" for key, value in described.items()))
