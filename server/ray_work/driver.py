"""The process that speaks to Ray for a command: Ray ends its own driver where it is lost, and must not end a server."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

from edge_runtime.errors import NetworkError
from server.ray_work.messages import Answer, Ask, Cancel, Drop, Ended, Keep, Kept, Ready
from server.ray_work.parcels import pack, receive, send
from server.ray_work.piece import as_refusal
from server.ray_work.session import Session

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from server.ray_work.options import RayOptions

_LOOK_S = 1.0
"""Seconds between two looks at the cluster."""
_LEAVES_S = 15.0
"""Seconds that it may take to leave Ray once the command has gone."""


def run_driver(questions: Connection, answers: Connection, options: RayOptions) -> None:
    """Join Ray, and have its workers compute what is asked, until the other end of ``questions`` is closed.

    Args:
        questions: brings Keep, Drop, Ask and Cancel.
        answers: takes Ready, Answer and Ended.
        options: where the workers are.
    """
    os.dup2(2, 1)  # Ray prints what it finds; the command's output is not for that
    for number in (signal.SIGINT, signal.SIGTERM):  # of the whole group: the command decides when this process ends
        signal.signal(number, _leave_it_to_the_command)
    heard: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(questions, heard), daemon=True).start()
    session, voice = None, _Voice(answers)
    try:
        session = Session(options)
        voice.say(Ready(session.workers))
        threading.Thread(target=_watch, args=(session, voice), daemon=True).start()
        _Driver(session, heard, voice).run()
    except Exception as error:  # noqa: BLE001 the outermost wall of this process
        with contextlib.suppress(OSError):  # the command has gone
            voice.say(Ended(as_refusal(error)))
    finally:
        if session is not None:
            session.close()


def _leave_it_to_the_command(_number: int, _frame: object) -> None:
    """Do nothing: a handler, because processes that this one starts would inherit that a signal is ignored."""


def _listen(questions: Connection, heard: queue.SimpleQueue[Any]) -> None:
    """Put what the command says into a queue, at last None; then end this process if it does not end by itself."""
    with contextlib.suppress(EOFError):
        while True:
            heard.put(receive(questions))
    heard.put(None)
    time.sleep(_LEAVES_S)
    os._exit(1)


class _Voice:
    """Says something to the command; threads share it."""

    def __init__(self, answers: Connection) -> None:
        self._answers, self._lock = answers, threading.Lock()

    def say(self, message: Ready | Answer | Ended) -> None:
        """Say it; raises OSError where the command has gone."""
        parcel = pack(message)
        with self._lock:
            send(self._answers, parcel)


def _watch(session: Session, voice: _Voice) -> None:
    """Say that Ray is lost once it is: the other thread may wait for an answer of its head, for a minute and longer."""
    try:
        while True:
            session.look()
            time.sleep(_LOOK_S)
    except NetworkError as error:
        with contextlib.suppress(OSError):
            voice.say(Ended(as_refusal(error)))


class _Driver:
    """Does what the command asks, in one thread.

    Args:
        session: the time with Ray.
        heard: the command's messages, and numbers of pieces that are done; None: the command has gone.
        voice: takes the answers.
    """

    def __init__(self, session: Session, heard: queue.SimpleQueue[Any], voice: _Voice) -> None:
        self._session, self._heard, self._voice = session, heard, voice
        self._kept: dict[int, Any] = {}
        self._begun: dict[int, Any] = {}

    def run(self) -> None:
        """Serve until the command has gone; raises NetworkError where Ray is lost."""
        while True:
            message = self._heard.get()
            if message is None:
                return
            if isinstance(message, int):
                self._answer(message)
            else:
                self._do(message)

    def _do(self, message: Keep | Drop | Ask | Cancel) -> None:
        if isinstance(message, Keep):
            self._kept[message.number] = self._session.keep(message.value)
        elif isinstance(message, Drop):
            del self._kept[message.number]
        elif isinstance(message, Ask):
            self._begin(message)
        elif message.number in self._begun:
            self._session.cancel(self._begun[message.number])

    def _begin(self, ask: Ask) -> None:
        given = [self._kept[one.number] if isinstance(one, Kept) else one for one in ask.arguments]
        self._begun[ask.number] = self._session.begin(
            ask.make, self._kept[ask.described], ask.function, given, lambda: self._heard.put(ask.number)
        )

    def _answer(self, number: int) -> None:
        value = self._session.value(self._begun.pop(number))
        try:
            self._voice.say(Answer(number, value))
        except OSError:
            raise  # the command has gone
        except Exception as error:  # noqa: BLE001 a value that cannot be sent is the piece's fault, not the driver's
            self._voice.say(Answer(number, as_refusal(error)))
