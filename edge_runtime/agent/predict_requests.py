"""Answers the server's requests for predictions, in a thread of their own.

A request does not wait for the end of a round: it is answered beside the training, as one to the local HTTP endpoint
is, by the same service, which runs one prediction at a time. The agent's thread only puts it in the queue, after the
step at work. Where MOST_WAITING requests wait already, the device says that it is busy instead: whoever asked can ask
later, and a longer queue would only make all of them wait.

No text of a request, and no answer, gets into the log.
"""

from __future__ import annotations

import collections
import json
import logging
import queue
import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edge_runtime.errors import DataError, FaultError, NetworkError, as_covey_error, as_exception
from edge_runtime.predictions.limits import MinuteLimit, TooManyError
from edge_runtime.predictions.service import read_ask
from edge_runtime.protocol.messages import decode_message, encode_message
from edge_runtime.protocol.predictions import MOST_ANSWER_BYTES, TOO_LARGE, Predict, Predicted

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.errors import CoveyError
    from edge_runtime.predictions.service import Ask

_LOG = logging.getLogger(__name__)
MOST_WAITING = 8
"""Requests that wait for their turn."""
REFUSALS_PER_MINUTE = 60
"""Requests that are told why they are refused; more are dropped without a word, so that a flood is not answered."""
_REMEMBERED = 64
"""Requests whose repetition is known: a broker may deliver a message twice, and the server may send one again."""
_LONGEST_WHAT, _LONGEST_HINT = 2000, 1000


class Answers(Protocol):
    """What answers: predictions.service.PredictionService."""

    def predict(self, ask: Ask) -> dict[str, Any]:
        """See PredictionService.predict."""


class PredictRequests:
    """The requests of one device.

    Args:
        device: the device's name.
        service: answers.
        publish: sends the payload of an answer; called in several threads.
        clock: returns monotonic seconds.
    """

    def __init__(
        self, device: str, service: Answers, publish: Callable[[bytes], None], clock: Callable[[], float]
    ) -> None:
        self._device, self._service, self._publish, self._clock = device, service, publish, clock
        self._waiting: queue.Queue[tuple[Predict, float]] = queue.Queue(MOST_WAITING)
        self._seen: collections.deque[str] = collections.deque(maxlen=_REMEMBERED)
        self._refusals = MinuteLimit("refused requests", REFUSALS_PER_MINUTE, clock)
        threading.Thread(target=self._serve, name="predict requests", daemon=True).start()

    def take(self, payload: bytes) -> None:
        """Put a request in the queue, or refuse it; does not wait.

        Raises:
            ProtocolError: it is none.
        """
        request = decode_message(payload, Predict)
        if request.request in self._seen:
            return
        self._seen.append(request.request)
        try:
            self._waiting.put_nowait((request, self._clock() + request.patience_s))
        except queue.Full:
            what = f"{self._device} is busy: {MOST_WAITING} requests for predictions wait already"
            self._refuse(request, NetworkError(what, "ask again in a few seconds"))

    def _serve(self) -> None:
        while True:
            request, until = self._waiting.get()
            if self._clock() > until:
                _LOG.info("a request for predictions was not answered: its asker waits no more")
                continue
            self._answer(request)

    def _answer(self, request: Predict) -> None:
        try:
            found = self._service.predict(read_ask(request.body))
            body = json.dumps(found, ensure_ascii=False).encode()
            if len(body) > MOST_ANSWER_BYTES:
                what = f"the answer has {len(body)} bytes, {MOST_ANSWER_BYTES} {TOO_LARGE}"
                raise DataError(what, "ask for fewer texts at once, or for shorter ones")  # noqa: TRY301 one way out
        except BaseException as raised:  # noqa: BLE001 a panic of a library too is one request's failure
            caught = as_exception(raised)
            error = as_covey_error(caught)
            if isinstance(error, FaultError):  # its text, which a traceback ends with, may quote the request
                _LOG.error("a request for predictions failed at %s: %s", _place(caught), error.public)
            self._refuse(request, error)
        else:
            self._send(Predicted(request=request.request, device=self._device, code=0, what="", hint="", body=body))

    def _refuse(self, request: Predict, error: CoveyError) -> None:
        """Tell the asker why, within the limit; a DataError is about the asker's own texts, which it knows."""
        try:
            self._refusals.take(1)
        except TooManyError:
            return
        is_theirs = isinstance(error, DataError)
        self._send(
            Predicted(
                request=request.request,
                device=self._device,
                code=error.exit_code,
                what=(error.what if is_theirs else error.public.partition("\n")[0])[:_LONGEST_WHAT],
                hint=error.hint[:_LONGEST_HINT],
                body=b"",
            )
        )

    def _send(self, answer: Predicted) -> None:
        try:
            self._publish(encode_message(answer))
        except Exception as error:  # noqa: BLE001 the next request may be answered
            _LOG.warning("an answer was not sent: %s", as_covey_error(error).public)


def _place(error: BaseException) -> str:
    """Return the file and the line in which an exception was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "an unknown place"
