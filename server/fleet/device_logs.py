"""The logs that devices have sent: the last lines of each, in memory."""

from __future__ import annotations

import collections
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from edge_runtime.errors import ProtocolError
from edge_runtime.protocol.messages import encode_message
from edge_runtime.protocol.side_messages import LONGEST_FOLLOW_S, MOST_LINES, LogRequest
from edge_runtime.protocol.topics import topic_for

if TYPE_CHECKING:
    from edge_runtime.network.transport import Transport
    from edge_runtime.protocol.side_messages import LogLine, LogLines

KEPT_LINES = 500
"""Lines that are kept of a device."""
KEPT_DEVICES = 200
"""Devices whose lines are kept; those that sent lines last."""


@dataclass(frozen=True)
class ReceivedLine:
    """One line of a device's log, as the server took it in.

    Attributes:
        sequence: number of the line on this server, ascending over all devices; a follower asks for those after it.
        boot_id: of the start that sent it.
        reason: ``asked``; ``crash``: it was written before a process that did not end properly.
        dropped: lines that the device left out before this one.
        line: the line; its time is the device's.
    """

    sequence: int
    boot_id: str
    reason: Literal["asked", "crash"]
    dropped: int
    line: LogLine


class DeviceLogs:
    """Keeps what devices send of their logs. Safe to use from several threads."""

    def __init__(self) -> None:
        self._kept: collections.OrderedDict[str, collections.deque[ReceivedLine]] = collections.OrderedDict()
        self._sequence = 0
        self._lock = threading.Lock()

    def take(self, device: str, message: LogLines) -> list[ReceivedLine]:
        """Take in a message; return its lines that are new, in order.

        Args:
            device: the device in the message's topic.
            message: the message.

        Raises:
            ProtocolError: it is in another device's name.
        """
        if message.device != device:
            raise ProtocolError(
                f"{device} sent a log in the name of {message.device}",
                "check name in the edge.toml of both: every device needs a name of its own",
            )
        with self._lock:
            kept = self._kept.setdefault(device, collections.deque(maxlen=KEPT_LINES))
            self._kept.move_to_end(device)
            while len(self._kept) > KEPT_DEVICES:
                self._kept.popitem(last=False)
            known = {(received.line.number, received.line.at_s) for received in kept}
            new: list[ReceivedLine] = []
            for line in message.lines:
                if (line.number, line.at_s) not in known:
                    self._sequence += 1
                    dropped = 0 if new else message.dropped
                    new.append(ReceivedLine(self._sequence, message.boot_id, message.reason, dropped, line))
            kept.extend(new)
        return new

    def lines(self, device: str, since: int = 0) -> list[ReceivedLine]:
        """Return a device's lines after a sequence number, in order; empty for a device that has sent none."""
        with self._lock:
            return [received for received in self._kept.get(device, ()) if received.sequence > since]

    def forget(self, device: str) -> None:
        """Forget a device's lines."""
        with self._lock:
            self._kept.pop(device, None)


def request_log(transport: Transport, fleet: str, device: str, lines: int, follow_s: float) -> None:
    """Ask a device for its log; it answers on its log topic, and not at all while it is away.

    Args:
        transport: the server's connection.
        fleet: the fleet.
        device: the device.
        lines: so many of the last lines; more than a device keeps are as many as it keeps.
        follow_s: seconds for which it is to send new lines; a follower asks again before they are over.
    """
    request = LogRequest(lines=max(0, min(lines, MOST_LINES)), follow_s=max(0.0, min(follow_s, LONGEST_FOLLOW_S)))
    transport.publish(topic_for(fleet, device, "log/get"), encode_message(request))
