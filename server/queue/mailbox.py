"""What other threads ask of the thread that runs the jobs: each wish is done in its turn, and answered."""

from __future__ import annotations

import concurrent.futures
import queue
from typing import TYPE_CHECKING, Any, TypeVar

from server.errors import JobError

if TYPE_CHECKING:
    from collections.abc import Callable

AnswerT = TypeVar("AnswerT")


class Mailbox:
    """Wishes in order of arrival. Safe to use from several threads."""

    def __init__(self) -> None:
        self._wishes: queue.SimpleQueue[tuple[Callable[[], Any], concurrent.futures.Future[Any]]] = queue.SimpleQueue()

    def ask(self, wish: Callable[[], AnswerT], timeout_s: float) -> AnswerT:
        """Have a wish done in the other thread, and return its answer.

        Args:
            wish: what is done.
            timeout_s: seconds that it may take; it may still be done later.

        Raises:
            JobError: it was not done in time.
            CoveyError: what the wish raises.
        """
        answer: concurrent.futures.Future[AnswerT] = concurrent.futures.Future()
        self._wishes.put((wish, answer))
        try:
            return answer.result(timeout_s)
        except concurrent.futures.TimeoutError as error:
            raise JobError(
                f"the server was too busy to answer within {timeout_s:g} s", "it may do it yet: see covey job list"
            ) from error

    def serve(self) -> None:
        """Do every wish that has arrived, in the caller's thread; what one raises is the asker's to handle."""
        while True:
            try:
                wish, answer = self._wishes.get_nowait()
            except queue.Empty:
                return
            if not answer.set_running_or_notify_cancel():
                continue
            try:
                answer.set_result(wish())
            except Exception as error:  # noqa: BLE001 it is raised where it was asked for
                answer.set_exception(error)
