"""Shows the progress of a job: a live table on a terminal, plain lines elsewhere, JSON lines for programs."""

from __future__ import annotations

import contextlib
import statistics
import sys
from typing import TYPE_CHECKING, Any

import msgspec
from rich.console import Console
from rich.live import Live
from rich.table import Table

from edge_runtime.output import printable
from server import events
from server.views.status import waiting_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from server.events import Event, Observer

_SHOWN_ROUNDS = 12
"""The table shows this many of the last rounds."""


class _Row:
    """A row of the table: one round."""

    def __init__(self) -> None:
        self.reports = 0
        self.failed = 0
        self.offered = 0
        self.train_losses: list[float] = []
        self.seconds = 0.0
        self.bytes_up = 0
        self.status = "open"
        self.evaluation: events.Evaluated | None = None


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

    def take(self, event: Event) -> str | None:
        """Take in an event; returns a line about it, or None for an event that is not shown as a line."""
        match event:
            case events.DeviceChanged():
                self._states[event.device] = event.state
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
                self._note = f"round {event.round + 1} of {self._wanted}"
            case events.ReportTaken():
                row = self._row(event.round)
                row.train_losses += [] if event.loss is None else [event.loss]
                row.seconds = max(row.seconds, event.seconds)
                row.reports += 1
                row.bytes_up += event.bytes_up
            case events.OfferFailed():
                self._row(event.round).failed += 1
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
        """Return the current table."""
        online = sum(state in ("online", "busy") for state in self._states.values())
        busy = sum(state == "busy" for state in self._states.values())
        table = Table(title=f"{self._name}: {self._note}", caption=f"{online} devices online, {busy} at work")
        for column in ("round", "reports", "slowest", "bytes up", "train loss", "held-out loss", "accuracy", "adapter"):
            table.add_column(column, justify="left" if column == "adapter" else "right")
        if self._start is not None:
            table.add_row("start", "", "", "", "", f"{self._start.loss:.4f}", f"{self._start.accuracy:.3f}", "")
        for index in sorted(self._rows)[-_SHOWN_ROUNDS:]:
            row = self._rows[index]
            loss = f"{row.evaluation.loss:.4f}" if row.evaluation else ""
            accuracy = f"{row.evaluation.accuracy:.3f}" if row.evaluation else ""
            train_loss = f"{statistics.fmean(row.train_losses):.4f}" if row.train_losses else ""
            train = (f"{row.seconds:.1f} s", str(row.bytes_up), train_loss) if row.reports else ("", "", "")
            table.add_row(str(index + 1), f"{row.reports}/{row.offered}", *train, loss, accuracy, row.status)
        return table


@contextlib.contextmanager
def watch(name: str, rounds: int, output_format: str) -> Iterator[Observer]:
    """Yield an observer that shows a job's events: JSON lines on stdout, else a table or lines on stderr.

    Args:
        name: name of the job.
        rounds: number of its rounds.
        output_format: ``json`` or ``text``.
    """
    if output_format == "json":
        yield lambda event: print_json(msgspec.json.encode(event))
        return
    progress = Progress(name, rounds)
    console = Console(stderr=True)
    if not console.is_terminal:

        def as_line(event: Event) -> None:
            if line := progress.take(event):
                console.print(printable(line), markup=False, highlight=False, soft_wrap=True)

        yield as_line
        return
    with Live(progress.table(), console=console, refresh_per_second=4) as live:

        def as_table(event: Event) -> None:
            progress.take(event)
            live.update(progress.table())

        yield as_table


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
