"""A TCP way that delays what passes: a broker that is far away, on one machine."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_PART_BYTES = 1 << 16


async def _pass(source: asyncio.StreamReader, sink: asyncio.StreamWriter, delay_s: float) -> None:
    """Write what is read, each part ``delay_s`` after it came, in order."""
    loop = asyncio.get_running_loop()
    while part := await source.read(_PART_BYTES):
        loop.call_later(delay_s, sink.write, part)
    loop.call_later(delay_s, sink.close)


@contextlib.contextmanager
def slow_link(target: int, delay_s: float) -> Iterator[int]:
    """Pass connections on to a port of this machine, in a thread; yield the port that it listens on.

    Args:
        target: the port.
        delay_s: seconds that a byte takes in each direction.
    """
    loop = asyncio.new_event_loop()

    async def take(near: asyncio.StreamReader, to_near: asyncio.StreamWriter) -> None:
        far, to_far = await asyncio.open_connection("127.0.0.1", target)
        await asyncio.gather(_pass(near, to_far, delay_s), _pass(far, to_near, delay_s), return_exceptions=True)

    server = loop.run_until_complete(asyncio.start_server(take, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever, name="slow link", daemon=True)
    thread.start()
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
