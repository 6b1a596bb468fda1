"""A TCP connection's way through a test: bytes pass, vanish without a word, or the connections are cut."""

from __future__ import annotations

import contextlib
import socket
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_PART_BYTES = 1 << 16


@dataclass(eq=False)
class _Pair:
    near: socket.socket
    far: socket.socket
    is_silent: bool

    def end(self) -> None:
        for end in (self.near, self.far):
            _shut(end)


class Relay:
    """Passes connections on to a port of this machine.

    Attributes:
        port: the port that it listens on.
        connections: how many have come so far.
        vanished_bytes: how many were not passed on.
        passed_parts: how many pieces of the streams were passed on, in both directions together.
        lacks_groups: whether it makes the broker behind it one without shared subscriptions: it takes such a
            subscription for one to a topic of that name, as RabbitMQ does.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.connections = 0
        self.vanished_bytes = 0
        self.passed_parts = 0
        self.lacks_groups = False
        self._is_silent = False
        self._pairs: list[_Pair] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def fall_silent(self) -> None:
        """Pass nothing on from now on, and close nothing: as where a network drops packets without a word."""
        self._is_silent = True
        for pair in self._pairs:
            pair.is_silent = True

    def speak(self) -> None:
        """Pass on what comes over new connections; the silent ones stay silent."""
        self._is_silent = False

    def cut(self) -> None:
        """End all connections; new ones are passed on."""
        pairs, self._pairs = self._pairs, []
        for pair in pairs:
            pair.end()

    def close(self) -> None:
        """Listen no more, and end all connections."""
        _shut(self._listener)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near = self._listener.accept()[0]
                try:
                    far = socket.create_connection(("127.0.0.1", self._target))
                except OSError:
                    near.close()
                    continue
                pair = _Pair(near, far, self._is_silent)
                self._pairs.append(pair)
                self.connections += 1
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._pass, args=(pair, source, sink), daemon=True).start()

    def _pass(self, pair: _Pair, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while part := source.recv(_PART_BYTES):
                if pair.is_silent:
                    self.vanished_bytes += len(part)
                else:
                    sink.sendall(part.replace(b"$share/", b"_share/") if self.lacks_groups else part)
                    self.passed_parts += 1
        if not pair.is_silent:
            _shut(sink)


def _shut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def relay_to(port: int) -> Iterator[Relay]:
    """Yield a relay to a port of this machine."""
    relay = Relay(port)
    try:
        yield relay
    finally:
        relay.close()
