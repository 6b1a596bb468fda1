"""The end of a job: its final adapter goes to every device that is here, and each proves by its hash that it has it."""

from __future__ import annotations

from server import events

_LONGEST_S = 60.0
"""Seconds within which the devices must prove the final adapter."""
_GONE_S = 3.0
"""Seconds that are granted to proofs of devices that have left."""


class FinalSync:
    """Who was sent the final adapter, and how long it is waited for.

    Args:
        now: seconds of the server's clock at the end of the last round.
        took_part: names of the devices that were offered a round.
    """

    def __init__(self, now: float, took_part: set[str]) -> None:
        self._took_part = took_part
        self._deadline_at, self._gone_until = now + _LONGEST_S, now + _GONE_S
        self._sent: set[str] = set()
        self._have_plan: set[str] = set()  # on their present connection

    def connected_anew(self, name: str) -> None:
        """Enter that a device has connected anew: it may have lost its plan."""
        self._have_plan.discard(name)

    def to_send(self, here: set[str]) -> list[str]:
        """Return the devices of ``here`` that have no plan to fetch the adapter, sorted; they have one from now on."""
        new = sorted(here - self._have_plan)
        self._sent |= here
        self._have_plan |= here
        return new

    def progress(self, proved: set[str]) -> events.Syncing:
        """Return how many devices were sent the adapter, and how many of them are in ``proved``."""
        return events.Syncing(devices=len(self._sent), proved=len(self._sent & proved))

    def is_over(self, here: set[str], proved: set[str], heard: set[str] | None, now: float) -> bool:
        """Return whether nobody is waited for any more.

        A broker keeps order within a topic only: a goodbye may overtake the proof that was sent before it. A server
        that has just started, or lost its connection, waits for those who took part and may yet answer its hello.

        Args:
            here: names of the devices that are here.
            proved: names of those that have proved to have the adapter.
            heard: names of those that have been heard of since the server's hello; None: all had the time to answer it.
            now: seconds of the server's clock.
        """
        if heard is not None and self._took_part - heard - proved:
            self._gone_until = now + _GONE_S
            return False
        if (self._sent - proved) & here:
            self._gone_until = now + _GONE_S
        # Who has announced itself may say in the next moment that it is here: these are two messages.
        may_be_here = heard is not None and bool(self._took_part - here - proved)
        return (self._sent <= proved and not may_be_here) or now > min(self._deadline_at, self._gone_until)
