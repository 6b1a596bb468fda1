"""Finds the message at which a broker closes the connection again and again, so that others need not wait behind it."""

from __future__ import annotations

PATIENCE = 3
"""Connections that a broker may close at one message before it is given up."""


class StuckMessage:
    """Counts connections in a row that the broker closed with the same message at the head of the queue.

    From the first such loss on, messages are to be sent one by one: the head is then the very message that the broker
    took, and not one whose acknowledgement was lost with the connection.

    Attributes:
        is_one_by_one: whether messages are to be sent one by one.
    """

    def __init__(self) -> None:
        self._head: int | None = None
        self._times = 0
        self.is_one_by_one = False

    def lost(self, head: int | None, *, is_closed_soon: bool) -> bool:
        """Enter a lost connection; return whether the head of the queue is to be given up.

        Args:
            head: number of the message that has waited longest for an acknowledgement; None: none waits.
            is_closed_soon: whether the broker closed the connection, soon after the login.
        """
        if head is None or not is_closed_soon:
            self._head, self._times, self.is_one_by_one = None, 0, False
            return False
        was_one_by_one, self.is_one_by_one = self.is_one_by_one, True
        self._times = self._times + 1 if head == self._head else 1
        self._head = head
        if self._times < PATIENCE or not was_one_by_one:
            return False
        self._head, self._times = None, 0
        return True
