"""Sends the device's public log: the last lines when asked, new ones while somebody follows, and those before a crash.

Nothing is sent unasked, except what was written before a process that did not end properly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from edge_runtime.protocol.messages import encode_message
from edge_runtime.protocol.side_messages import LogLines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from edge_runtime.agent.kept_log import Log
    from edge_runtime.protocol.side_messages import LogLine, LogRequest

LINES_PER_S = 10.0
BURST_LINES = 50
"""Lines that may be sent at once after a quiet while, beside those that a request asks for."""
_MESSAGE_BYTES = 4096
_BYTES_BESIDE = 64
"""Bytes of a line's other fields."""
_CRASH_SENDS = 3
"""Epochs of the server under which the lines before a crash are sent: one may have gone before it took them."""


class NoLog:
    """The log of a device that keeps none."""

    before_crash: Sequence[LogLine] = ()

    def lines(self) -> list[LogLine]:
        """See kept_log.Log."""
        return []


class LogSender:
    """Answers requests for the log.

    Args:
        device: the device's name.
        boot_id: of this start.
        log: the lines.
        publish: sends the payload of a message on the device's log topic.
        clock: returns monotonic seconds.
    """

    def __init__(
        self, device: str, boot_id: str, log: Log, publish: Callable[[bytes], None], clock: Callable[[], float]
    ) -> None:
        self._device, self._boot_id, self._log, self._publish, self._clock = device, boot_id, log, publish, clock
        self._follow_until = float("-inf")
        self._sent = -1  # number of the last line that was sent, or left out
        self._dropped = 0
        self._may_send, self._looked_at = float(BURST_LINES), clock()
        self._crash_epochs: list[str] = []

    def take(self, request: LogRequest) -> None:
        """Answer a request: send the last lines that it asks for, and follow from there."""
        now, lines = self._clock(), self._log.lines()
        was_followed = now < self._follow_until
        self._follow_until = max(self._follow_until, now + request.follow_s)
        if request.lines:
            self._send(lines[-request.lines :], "asked")
        if request.lines or not was_followed:
            self._sent = lines[-1].number if lines else -1
            self._dropped = 0

    def turn(self) -> None:
        """Send what is new while somebody follows, no more than LINES_PER_S; the newest lines where there are more."""
        now = self._clock()
        self._may_send = min(BURST_LINES, self._may_send + LINES_PER_S * (now - self._looked_at))
        self._looked_at = now
        if now >= self._follow_until:
            return
        new = [line for line in self._log.lines() if line.number > self._sent]
        if not new or self._may_send < 1:
            return
        count = min(len(new), int(self._may_send))
        self._dropped += new[-1].number - self._sent - count
        self._may_send -= count
        self._sent = new[-1].number
        self._send(new[-count:], "asked")

    def announced(self, epoch: str | None) -> None:
        """Send the lines before a crash, after an announcement under an epoch of the server."""
        lines = self._log.before_crash
        if lines and epoch is not None and epoch not in self._crash_epochs and len(self._crash_epochs) < _CRASH_SENDS:
            self._crash_epochs.append(epoch)
            self._send(lines, "crash")

    def _send(self, lines: Sequence[LogLine], reason: Literal["asked", "crash"]) -> None:
        for part in _parts(lines):
            message = LogLines(
                device=self._device, boot_id=self._boot_id, reason=reason, dropped=self._dropped, lines=part
            )
            self._publish(encode_message(message))
            self._dropped = 0


def _parts(lines: Sequence[LogLine]) -> Iterator[list[LogLine]]:
    """Yield lines in messages of some 4 kB."""
    part: list[LogLine] = []
    size = 0
    for line in lines:
        cost = len(line.text.encode()) + _BYTES_BESIDE
        if part and size + cost > _MESSAGE_BYTES:
            yield part
            part, size = [], 0
        part.append(line)
        size += cost
    if part:
        yield part
