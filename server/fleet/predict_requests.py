"""Requests for predictions that wait for a device's answer."""

from __future__ import annotations

import concurrent.futures
import secrets
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_runtime.errors import NetworkError, ProtocolError
from edge_runtime.protocol.messages import encode_message
from edge_runtime.protocol.predictions import Predict, Predicted
from edge_runtime.protocol.topics import topic_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.network.transport import Transport

MOST_WAITING = 256
"""Requests that may wait at once, over all devices."""


@dataclass(frozen=True)
class Waiting:
    """A request that waits.

    Attributes:
        device: the device that is asked.
        request: names the request.
        until: when nobody waits any more, in seconds of the server's clock.
        body: see Predict.
        answer: becomes the device's answer.
    """

    device: str
    request: str
    until: float
    body: bytes
    answer: concurrent.futures.Future[Predicted]


class PredictRequests:
    """Asks devices, and hands each answer to whoever waits for it. Safe to use from several threads.

    Args:
        transport: the server's connection.
        fleet: the fleet.
        clock: returns monotonic seconds.
    """

    def __init__(self, transport: Transport, fleet: str, clock: Callable[[], float]) -> None:
        self._transport, self._fleet, self._clock = transport, fleet, clock
        self._waiting: dict[str, Waiting] = {}
        self._lock = threading.Lock()

    def ask(self, device: str, body: bytes, patience_s: float) -> Waiting:
        """Send a request; whoever asks drops it when it waits no more.

        Args:
            device: the device.
            body: see Predict.
            patience_s: seconds for which the answer is waited for.

        Raises:
            NetworkError: too many requests wait already, or it cannot be sent; then it does not wait.
        """
        answer: concurrent.futures.Future[Predicted] = concurrent.futures.Future()
        answer.set_running_or_notify_cancel()  # whoever gives up waiting does not cancel it
        waiting = Waiting(device, secrets.token_hex(8), self._clock() + patience_s, body, answer)
        with self._lock:
            if len(self._waiting) >= MOST_WAITING:
                raise NetworkError(f"{MOST_WAITING} requests for predictions wait already", "ask again in a while")
            self._waiting[waiting.request] = waiting
        try:
            self._send(waiting)
        except BaseException:
            self.drop(waiting)
            raise
        return waiting

    def drop(self, waiting: Waiting) -> None:
        """Wait for an answer no more."""
        with self._lock:
            self._waiting.pop(waiting.request, None)

    def again(self, device: str) -> None:
        """Send what waits for a device once more: it has connected anew, and may not have heard it."""
        with self._lock:
            waiting = [one for one in self._waiting.values() if one.device == device]
        for one in waiting:
            self._send(one)

    def take(self, device: str, answer: Predicted) -> None:
        """Take in an answer; one that nobody waits for changes nothing.

        Args:
            device: the device in the message's topic.
            answer: the message.

        Raises:
            ProtocolError: it is in another device's name, or answers a request to another device.
        """
        with self._lock:
            waiting = self._waiting.get(answer.request)
            if answer.device != device or (waiting is not None and waiting.device != device):
                raise ProtocolError(
                    f"{device} answered a request for predictions to another device",
                    "check name in the edge.toml of both: every device needs a name of its own",
                )
            self._waiting.pop(answer.request, None)
        if waiting is not None:
            waiting.answer.set_result(answer)

    def _send(self, waiting: Waiting) -> None:
        left_s = waiting.until - self._clock()
        if left_s > 0:
            message = Predict(request=waiting.request, patience_s=left_s, body=waiting.body)
            self._transport.publish(topic_for(self._fleet, waiting.device, "predict"), encode_message(message))
