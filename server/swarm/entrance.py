"""Lets sessions log in at a bounded rate, and a few at a time: a broker's queue of new connections is short."""

from __future__ import annotations

import asyncio
import concurrent.futures
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_AT_ONCE = 4
"""Connections of a process that are being made at once: TCP and TLS handshakes, each in a thread."""


class Entrance:
    """The one door through which all sessions of a process connect, the first time and again.

    Args:
        rate: connections begun a second.
    """

    def __init__(self, rate: float) -> None:
        self._pause_s = 1.0 / rate
        self._waiting: asyncio.Queue[Callable[[], None]] = asyncio.Queue()
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._threads = concurrent.futures.ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="entrance")
        self._at_work: set[asyncio.Future[None]] = set()

    def ask(self, connect: Callable[[], None]) -> None:
        """Have a connection made when its turn comes; ``connect`` runs in a thread, and raises nothing."""
        self._waiting.put_nowait(connect)

    async def run(self) -> None:
        """Let sessions in, until it is cancelled."""
        loop = asyncio.get_running_loop()
        next_at = loop.time()
        while True:
            connect = await self._waiting.get()
            await self._slots.acquire()
            now = loop.time()
            next_at = max(next_at + self._pause_s, now - 1.0)  # a pause that was missed is made up for a second
            if next_at > now:
                await asyncio.sleep(next_at - now)
            future = loop.run_in_executor(self._threads, connect)
            self._at_work.add(future)
            future.add_done_callback(self._done)

    def _done(self, future: asyncio.Future[None]) -> None:
        self._at_work.discard(future)
        self._slots.release()

    def close(self) -> None:
        """Wait for connections that are being made, and let nobody in any more."""
        self._threads.shutdown(wait=True, cancel_futures=True)
