"""The device's last report: it is sent again until the server has acknowledged it, also after a restart.

A broker takes a report although the server is down, and need not keep it. So the report is sent again on each new
connection, under each new epoch of the server, and with growing pauses while a connection is there.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from edge_runtime.errors import NetworkError, ProtocolError
from edge_runtime.protocol.messages import decode_report

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.protocol.plans import BackpropPlan, TrainPlan
    from edge_runtime.protocol.reports import Report, ReportAck
    from edge_runtime.store.journal_file import JournalFile

FIRST_PAUSE_S = 10.0
LONGEST_PAUSE_S = 600.0
PAUSES_TO_SAY_SO = 3
"""Pauses without an acknowledgement after which the log says what may be the cause."""
_LOG = logging.getLogger(__name__)


class LastReport:
    """Sends the journal's report, and sends it again.

    Args:
        journal: the device's journal; it remembers whether the report is acknowledged.
        publish: sends a report.
        is_connected: whether there is a connection to the broker: without one, what is published waits in a queue.
        clock: returns monotonic seconds.
        cause: what the log says of a report that nobody acknowledges, after its round.
    """

    def __init__(
        self,
        journal: JournalFile,
        publish: Callable[[Report], None],
        is_connected: Callable[[], bool],
        clock: Callable[[], float],
        cause: str,
    ) -> None:
        self._journal, self._publish, self._is_connected = journal, publish, is_connected
        self._clock, self._cause = clock, cause
        self._undeliverable: tuple[bytes, NetworkError] | None = None  # what the broker does not take, and why
        self._pauses = 0  # that have passed without an acknowledgement
        self._sent_at: float | None = None  # None: it has not been sent since the start, or it is acknowledged

    def read(self) -> Report | None:
        """Return the journal's report; None where there is none, or it is of another version of the protocol."""
        payload = self._journal.entries.report
        if payload is None:
            return None
        try:
            return decode_report(payload)
        except ProtocolError as error:
            _LOG.warning("the journal's report is unusable: %s", error.what)
            return None

    def answers(self, plan: TrainPlan | BackpropPlan) -> bool:
        """Whether the report answers this very plan."""
        report = self.read()
        return report is not None and (report.job, report.round, report.attempt, report.adapter_sha256) == (
            plan.job,
            plan.round,
            plan.attempt,
            plan.adapter.file.sha256,
        )

    def send(self) -> None:
        """Send the report now, whether or not it is acknowledged; the pauses begin anew.

        Raises:
            NetworkError: the broker does not take this report: it was tried since the start.
        """
        known = self._undeliverable
        if known is not None and known[0] == self._journal.entries.report:
            raise NetworkError(known[1].what, known[1].hint)
        report = self.read()
        if report is not None:
            self._publish(report)
            self._pauses, self._sent_at = 0, self._clock()

    def again(self) -> None:
        """Send the report if it is not acknowledged: the connection is new, or the server has begun a new epoch.

        Raises:
            StorageError: the report is of another version of the protocol, and the journal cannot be written.
        """
        journal = self._journal.entries
        if journal.report is None or journal.acknowledged:
            return
        if self.read() is None:
            self._journal.acknowledge()  # nobody can read it: it is no use to look at it again
        else:
            self.send()

    def turn(self) -> None:
        """Send the report again where its pause has passed; each pause is twice the one before, up to the longest."""
        if self._sent_at is None or not self._is_connected():
            return
        pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(self._pauses, 10))
        if self._clock() - self._sent_at < pause_s or (report := self.read()) is None:
            return
        self._publish(report)
        self._pauses, self._sent_at = self._pauses + 1, self._clock()
        if self._pauses == PAUSES_TO_SAY_SO:
            _LOG.warning("the report of round %d is not acknowledged; %s", report.round, self._cause)

    def take(self, ack: ReportAck) -> Report | None:
        """Take in an acknowledgement; return the report if its delta is asked for.

        One of another report changes nothing: it was late.

        Raises:
            StorageError: the journal cannot be written.
        """
        report = self.read()
        if report is None or (report.job, report.round, report.attempt) != (ack.job, ack.round, ack.attempt):
            return None
        if ack.outcome == "upload":
            self._pauses, self._sent_at = 0, self._clock()
            return report
        self.give_up()
        return None

    def give_up(self) -> None:
        """Send the report no more unless its plan arrives again: it is acknowledged, or refused.

        Raises:
            StorageError: the journal cannot be written.
        """
        self._sent_at = None
        self._journal.acknowledge()

    def not_taken(self, payload: bytes, error: NetworkError) -> None:
        """Enter that the broker does not take a report; the plan that it answers is refused while this process runs.

        Args:
            payload: the report as it was sent.
            error: why the broker does not take it.

        Raises:
            StorageError: the journal cannot be written.
        """
        self._undeliverable = payload, error
        if payload == self._journal.entries.report:
            self.give_up()
