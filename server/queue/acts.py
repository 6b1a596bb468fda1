"""What an operator asks for is entered in the audit before it is done in the server's thread, and its outcome after."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, TypeVar

from edge_runtime.errors import CoveyError, cause_of
from server.errors import ChangedError
from server.storage.audit_queries import last_change
from server.storage.audit_records import DONE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from server.queue.mailbox import Mailbox
    from server.storage.audit_records import Asker
    from server.storage.ledger import Ledger

_TIMEOUT_S = 60.0
"""Seconds that a wish may wait for its turn; a turn may replay a large round on a slow board."""
AnswerT = TypeVar("AnswerT")


class Acts:
    """Changes that operators ask for. Safe to use from several threads.

    Args:
        ledger: has the audit.
        mailbox: of the thread that runs the jobs.
    """

    def __init__(self, ledger: Ledger, mailbox: Mailbox) -> None:
        self._ledger, self._mailbox = ledger, mailbox

    @contextlib.contextmanager
    def entry(self, asker: Asker, action: str, subject: str, detail: str = "") -> Iterator[int]:
        """Enter that an operator asks for what the block does in a turn; yields the entry's number.

        Raises:
            CoveyError: what the block raises; the audit has its words.
        """
        number = self._ledger.audit_begun(asker, action, subject, detail)
        try:
            yield number
        except CoveyError as error:
            self._ledger.audit_ended(number, f"refused: {error.what}")
            raise
        except Exception as error:
            self._ledger.audit_ended(number, f"failed: {cause_of(error)}")
            raise

    def turn(self, number: int, asker: Asker, subject: str, wish: Callable[[], AnswerT]) -> AnswerT:
        """Have a wish done in the server's thread, within an entry, and return its answer.

        Args:
            number: of the entry.
            asker: who asks.
            subject: what is changed.
            wish: what is done.

        Raises:
            ChangedError: it was changed by somebody since the asker has looked at it.
            CoveyError: what the wish raises, or the server was too busy.
        """

        def checked() -> AnswerT:
            if asker.seen is not None:
                self._check_unchanged(subject, asker.seen)
            answer = wish()
            self._ledger.audit_ended(number, DONE)  # here, so that the next wish finds it
            return answer

        return self._mailbox.ask(checked, _TIMEOUT_S)

    def do(self, asker: Asker, action: str, subject: str, wish: Callable[[], AnswerT], detail: str = "") -> AnswerT:
        """Do a wish in its turn, with its entry in the audit; see ``entry`` and ``turn``."""
        with self.entry(asker, action, subject, detail) as number:
            return self.turn(number, asker, subject, wish)

    def note(self, asker: Asker, action: str) -> None:
        """Enter something that an operator has done, and that changes no job, device or rollout."""
        self._ledger.audit_ended(self._ledger.audit_begun(asker, action, asker.name), DONE)

    def _check_unchanged(self, subject: str, seen: int) -> None:
        last = last_change(self._ledger, subject, seen)
        if last is not None:
            raise ChangedError(
                f"{subject} has changed since you looked: {last.action} by {last.actor} at {last.at} UTC",
                "look at it again, and decide anew",
            )
