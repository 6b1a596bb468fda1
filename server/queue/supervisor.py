"""Runs a fleet's jobs: begins those whose turn has come, gives each its step, and ends them; the ledger has the truth.

Everything but the preparation of a job happens in the thread that calls ``turn``.
"""

from __future__ import annotations

import concurrent.futures
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from edge_runtime.errors import CoveyError, ShortageError, StorageError, as_covey_error, wall
from server import events
from server.errors import JobError, ToldToStopError
from server.job.job import Job
from server.job.selector import Selector, parse_selector
from server.queue.feed import Feed
from server.queue.mailbox import Mailbox
from server.queue.schedule import Waiting, owner_of, schedule
from server.storage import device_queries, queries
from server.views.status import waiting_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.events import Event
    from server.fleet.devices import Device
    from server.rounds.coordinator import Coordinator
    from server.rounds.job_run import JobRun
    from server.storage.ledger import Ledger
    from server.storage.records import JobRecord

_LOG = logging.getLogger(__name__)
_LOOK_S = 2.0
"""Seconds between two looks at the jobs that wait: devices come and go meanwhile."""
PAUSING = "is paused once its open round is over"
"""The ledger's reason of a job at work that is to be paused: a server that starts pauses it at once."""
_NOBODY = Selector(everyone=False)
_MOST_MESSAGES = 1000
"""Messages that are handled between two steps of the jobs, so that a step that took long makes nobody silent."""
_AT_ONCE = 200
"""Of these, how many at most wait for the disk together: the first of them is not answered before."""


@dataclass(frozen=True)
class Prepared:
    """A job whose files were read.

    Attributes:
        compose: makes its run; whether the ledger had it before; called in the thread of ``turn``.
        finish: writes the finished adapter, and returns its folder; called in a thread of its own.
    """

    compose: Callable[[Callable[[Event], None], Callable[[Device], bool]], tuple[JobRun, bool]]
    finish: Callable[[], str | None]


class Supervisor:
    """Runs the jobs of one fleet.

    Args:
        coordinator: reads the devices' messages.
        ledger: has the jobs.
        prepare: reads a job's files; called in a thread of its own.
        clock: returns monotonic seconds.
        observe: receives each event with the job that it is of.
        should_stop: asked while something is tried again.
        only: the only job that is run; None: all of the ledger.

    Attributes:
        coordinator: reads the devices' messages.
        mailbox: what other threads ask for.
        feed: the jobs' last events.
        errors: why jobs have failed since the start, by name.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        ledger: Ledger,
        prepare: Callable[[JobRecord], Prepared],
        clock: Callable[[], float],
        observe: Callable[[str, Event], None],
        should_stop: Callable[[], bool],
        only: str | None = None,
    ) -> None:
        self.coordinator = coordinator
        self.mailbox, self.feed = Mailbox(), Feed(first=time.time_ns() // 1000)
        self._ledger, self._prepare, self._clock = ledger, prepare, clock
        self._observe, self._should_stop, self._only = observe, should_stop, only
        self.errors: dict[str, Exception] = {}
        self._fleet = coordinator.roster.fleet
        self._threads = concurrent.futures.ThreadPoolExecutor(max_workers=2, thread_name_prefix="jobs")
        self._preparing: dict[str, concurrent.futures.Future[Prepared]] = {}
        self._finishing: dict[str, concurrent.futures.Future[str | None]] = {}
        self._prepared: dict[str, Prepared] = {}
        self._selectors: dict[str, Selector] = {}  # of the jobs at work, the oldest first
        self._look_at = 0.0
        self._tags: dict[str, frozenset[str]] = {}
        self.refresh_tags()
        for record in queries.jobs_of(ledger, self._fleet):
            if record.state == "running" and record.reason == PAUSING:  # the server ended before the round did
                ledger.job_is(record.name, "paused", None)

    # -- one turn -----------------------------------------------------------------------------------------------

    def turn(self, timeout_s: float) -> None:
        """Do what was asked, begin and step jobs, and handle the devices' messages.

        Args:
            timeout_s: seconds to wait for the first message.

        Raises:
            StorageError: the ledger or a blob cannot be written; every job can be resumed.
        """
        self.mailbox.serve()
        if self._clock() >= self._look_at:
            self._look_at = self._clock() + _LOOK_S
            self._begin_due()
        self._take_prepared()
        for run in list(self.coordinator.runs.values()):
            self._step(run)
        self._take_finished()
        handled = self.coordinator.handle_waiting(timeout_s, _AT_ONCE)
        for _ in range(_MOST_MESSAGES // _AT_ONCE):
            if handled < _AT_ONCE:
                break
            handled = self.coordinator.handle_waiting(0, _AT_ONCE)

    def is_at_work(self, name: str) -> bool:
        """Whether a job is being prepared, run or finished."""
        return name in self._selectors

    def look_soon(self) -> None:
        """Look at the waiting jobs with the next turn: something has changed."""
        self._look_at = 0.0

    def close(self) -> None:
        """End all work; jobs that are at work are resumed by the next server."""
        for run in self.coordinator.runs.values():
            run.close()
        self._threads.shutdown(wait=True, cancel_futures=True)

    # -- beginning ----------------------------------------------------------------------------------------------

    def _begin_due(self) -> None:
        records = queries.jobs_of(self._ledger, self._fleet)
        due = [
            record
            for record in records
            if record.state in ("queued", "running")
            and record.name not in self._selectors
            and self._only in (None, record.name)
        ]
        if not due:
            return
        due.sort(key=lambda record: record.state != "running")  # what was at work when the server stopped goes first
        selectors = {}
        for record in due:
            try:
                selectors[record.name] = parse_selector(_config(record).devices)
            except CoveyError as error:
                self._fail(record.name, error)
        due = [record for record in due if record.name in selectors]
        planned = schedule(
            [Waiting(record.name, selectors[record.name], record.after) for record in due],
            self._selectors,
            {record.name: record.state for record in records},
            self.tags(),
        )
        for record in due:
            if record.name in planned.start:
                self._selectors[record.name] = selectors[record.name]
                self.errors.pop(record.name, None)
                self._preparing[record.name] = self._threads.submit(self._prepare, record)
            elif record.reason != planned.reasons[record.name]:
                self._ledger.job_is(record.name, record.state, planned.reasons[record.name])

    def _take_prepared(self) -> None:
        for name in [name for name, future in self._preparing.items() if future.done()]:
            future = self._preparing.pop(name)
            try:
                prepared = self._prepared[name] = future.result()
                run, resumed = prepared.compose(self._observer(name), self._has(name))
                run.begin(resumed=resumed, should_stop=self._should_stop)
            except Exception as error:  # noqa: BLE001 a job that cannot begin does not end the fleet's server
                self._fail(name, error)
            else:
                self._ledger.job_is(name, "running", None)

    def _observer(self, name: str) -> Callable[[Event], None]:
        waits = False

        def observe(event: Event) -> None:
            nonlocal waits
            self.feed.put(name, event)
            self._observe(name, event)
            if isinstance(event, events.Waiting):
                self._ledger.job_is(name, "running", waiting_text(event))
                waits = True
            elif isinstance(event, events.RoundOpened) and waits:
                self._ledger.job_is(name, "running", None)
                waits = False

        return observe

    def _has(self, name: str) -> Callable[[Device], bool]:
        def has(device: Device) -> bool:
            return owner_of(device.name, self.tags_of(device), self._selectors) == name

        return has

    # -- at work ------------------------------------------------------------------------------------------------

    def _step(self, run: JobRun) -> None:
        try:
            finished = run.step()
        except (StorageError, ShortageError):
            raise  # the disk is every job's
        except Exception as error:  # noqa: BLE001 one job does not end the others
            self._fail(run.name, error)
            return
        if finished:
            self._release(run.name)
            self._selectors[run.name] = _NOBODY  # until its result is written, it is neither waiting nor at work
            self._finishing[run.name] = self._threads.submit(self._prepared.pop(run.name).finish)
        elif run.is_pausing and run.is_idle:
            self._release(run.name)
            self._end(run.name, "paused", None)

    def _take_finished(self) -> None:
        for name in [name for name, future in self._finishing.items() if future.done()]:
            future = self._finishing.pop(name)
            del self._selectors[name]
            try:
                folder = future.result()
            except Exception as error:  # noqa: BLE001 as for a step
                self._fail(name, error)
                continue
            self._ledger.end_job(name, "finished", folder)
            self._end(name, "finished", None)

    def _fail(self, name: str, caught: Exception) -> None:
        if isinstance(caught, ToldToStopError):
            return  # the next server goes on with the job
        error, self.errors[name] = as_covey_error(caught), caught
        _LOG.error("job %s failed: %s", name, error, exc_info=None if isinstance(caught, CoveyError) else caught)
        self._release(name)
        self._end(name, "failed", str(error))

    def _release(self, name: str) -> None:
        """Take a job from work; its devices are free."""
        run = self.coordinator.runs.get(name)
        if run is not None:
            run.close()
            self.coordinator.remove(name)
        self._selectors.pop(name, None)

    def _end(self, name: str, state: str, reason: str | None) -> None:
        self._prepared.pop(name, None)
        self._ledger.job_is(name, state, reason)
        changed = events.JobChanged(job=name, state=state, reason=reason)
        self.feed.put(name, changed)
        self._observe(name, changed)
        self.look_soon()

    # -- what the operator asks for, in the thread of ``turn`` -----------------------------------------------------

    def pause(self, name: str) -> str:
        """Pause a job once its open round is over; return its state."""
        run = self.coordinator.runs.get(name)
        if run is not None:
            run.is_pausing = True
            self._ledger.job_is(name, "running", PAUSING)
            return "pausing"
        self._drop_preparation(name)
        self._end(name, "paused", None)
        return "paused"

    def go_on(self, name: str) -> bool:
        """Take back that a job is to be paused; return whether it was."""
        run = self.coordinator.runs.get(name)
        if run is None or not run.is_pausing:
            return False
        run.is_pausing = False
        self._ledger.job_is(name, "running", None)
        return True

    def stop(self, name: str) -> None:
        """Stop a job at once: its open round is given up, its closed rounds stay."""
        run = self.coordinator.runs.get(name)
        if run is not None:
            run.abandon()
        self._drop_preparation(name)
        self._release(name)
        self._end(name, "stopped", None)

    def _drop_preparation(self, name: str) -> None:
        future = self._preparing.pop(name, None)
        if future is not None:
            future.cancel()
            self._selectors.pop(name, None)

    # -- devices ------------------------------------------------------------------------------------------------

    def refresh_tags(self) -> None:
        """Read from the ledger which tags the operator has given."""
        self._tags = {name: frozenset(tags) for name, tags in device_queries.tags_of(self._ledger, self._fleet).items()}
        self.look_soon()

    def tags_of(self, device: Device) -> frozenset[str]:
        """Return a device's tags: the operator's, and those of its edge.toml."""
        own = frozenset() if device.birth is None else frozenset(device.birth.tags)
        return own | self._tags.get(device.name, frozenset())

    def tags(self) -> dict[str, frozenset[str]]:
        """Return the tags of every device that is known, by name."""
        known = {name: self.tags_of(device) for name, device in self.coordinator.devices.items()}
        return self._tags | known


def _config(record: JobRecord) -> Job:
    """Return a job's configuration; raises JobError where another Covey has written it, with other fields."""
    with wall(
        lambda cause: JobError(
            f"job {record.name} was submitted by another version of Covey: {cause}", "submit it again, by another name"
        )
    ):
        return msgspec.convert(record.config, Job)
