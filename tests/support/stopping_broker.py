"""A broker of a few packets that ends connections where a test wants it: at a login's first messages, or at a topic."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_CONNECT, _PUBLISH, _SUBSCRIBE = 1, 3, 8
_VERSION_AT = 6  # of CONNECT's body: behind the protocol's name


class StoppingBroker:
    """Confirms what it is sent, and forgets it.

    Args:
        endings: connections that end at their first message.
        forbidden: a topic at which every connection ends; None: none.
        goes: whether it listens no more after the last of ``endings``.
    """

    def __init__(self, *, endings: int = 0, forbidden: str | None = None, goes: bool = False) -> None:
        self.logins = 0
        self._endings, self._forbidden, self._goes = endings, forbidden, goes
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while not (self._goes and self.logins == self._endings):
                connection = self._listener.accept()[0]
                with connection, contextlib.suppress(OSError):
                    self._talk(connection)
        self._listener.close()

    def _talk(self, connection: socket.socket) -> None:
        is_5 = False
        while (packet := _packet(connection)) is not None:
            kind, body = packet
            if kind == _CONNECT:
                self.logins += 1
                is_5 = body[_VERSION_AT] == 5
                connection.sendall(b"\x20\x03\x00\x00\x00" if is_5 else b"\x20\x02\x00\x00")
                continue
            if kind not in (_PUBLISH, _SUBSCRIBE):
                continue
            if self.logins <= self._endings or (self._forbidden is not None and self._forbidden.encode() in body):
                return
            if kind == _SUBSCRIBE:
                connection.sendall(b"\x90\x03" + body[:2] + b"\x01")
            else:
                (length,) = struct.unpack(">H", body[:2])
                connection.sendall(b"\x40\x02" + body[2 + length : 4 + length])

    def close(self) -> None:
        """Listen no more."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(30)


def _packet(connection: socket.socket) -> tuple[int, bytes] | None:
    head = connection.recv(1)
    if not head:
        return None
    size, shift = 0, 0
    while True:
        byte = connection.recv(1)[0]
        size |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            break
    body = b""
    while len(body) < size:
        body += connection.recv(size - len(body))
    return head[0] >> 4, body


@contextlib.contextmanager
def stopping_broker(*, endings: int = 0, forbidden: str | None = None, goes: bool = False) -> Iterator[StoppingBroker]:
    """Run one; see StoppingBroker."""
    broker = StoppingBroker(endings=endings, forbidden=forbidden, goes=goes)
    try:
        yield broker
    finally:
        broker.close()
