"""Keeps HTTP connections from taking all descriptors: those that wait too long are ended, and there is a most of them.

uvicorn ends connections that are idle between requests, and nothing else: a header that never ends, a body that stops,
a reader that does not read would stay for ever.
"""

from __future__ import annotations

import math
import resource
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Hashable

Phase = Literal["header", "idle", "body", "sending", "at work"]
"""What a connection waits for: a request's header, the next request, more of a body, a reader, or the server itself."""

_TICK_S = 1.0
_RESERVED_FILES = 128
"""Descriptors for ledger, broker, blobs that are written, libraries and threads."""
_FILES_EACH = 2
"""Descriptors of a connection: its socket, and the blob that it sends or receives."""
_LEAST, _MOST = 8, 1000
_NO_LINGER = struct.pack("ii", 1, 0)
"""The kernel too forgets what a reader that does not read has not taken."""


def most_connections(files: int) -> int:
    """Return how many connections there may be where a process may have ``files`` descriptors; -1: without limit."""
    if files < 0:
        return _MOST
    return max(_LEAST, min(_MOST, (files - _RESERVED_FILES) // _FILES_EACH))


@dataclass(frozen=True)
class Limits:
    """How long connections may wait, in seconds, and how many there may be.

    Attributes:
        header_s: from the first wait for a request until its header is complete.
        body_s: without a byte of a request's body, or without a byte that the other side takes of a response.
        keep_alive_s: idle between two requests.
        most: connections at once; None: what the limit of open files allows (most_connections).
    """

    header_s: float = 20.0
    body_s: float = 60.0
    keep_alive_s: float = 15.0
    most: int | None = None

    @property
    def most_at_once(self) -> int:
        """Connections at once."""
        if self.most is not None:
            return self.most
        return most_connections(resource.getrlimit(resource.RLIMIT_NOFILE)[0])

    @property
    def tick_s(self) -> float:
        """Seconds between two looks at the connections."""
        return min(_TICK_S, min(self.header_s, self.body_s, self.keep_alive_s) / 4)

    def seconds(self, phase: Phase) -> float:
        """Return how long a connection may stay in a phase without progress."""
        return {
            "header": self.header_s,
            "idle": self.keep_alive_s,
            "body": self.body_s,
            "sending": self.body_s,
            "at work": math.inf,
        }[phase]


class Watched(Protocol):
    """A connection, as it is watched."""

    def phase(self) -> Phase:
        """Return what it waits for."""

    def progress(self) -> Hashable:
        """Return something that changes with each request, and with each byte of a body in either direction."""

    def abort(self) -> None:
        """End it at once, without sending what waits."""


@dataclass
class _Wait:
    phase: Phase
    progress: Hashable
    since: float


class Connections:
    """The connections of one server; used in its event loop only.

    Args:
        limits: how long they may wait, and how many there may be.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._most = limits.most_at_once
        self._waits: dict[Watched, _Wait] = {}

    def __len__(self) -> int:
        return len(self._waits)

    def enter(self, connection: Watched, now: float) -> None:
        """Enter a new connection; where there are too many, end the one that is idle longest, or else the new one."""
        self._look(now)
        self._waits[connection] = _Wait(connection.phase(), connection.progress(), now)
        if len(self._waits) <= self._most:
            return
        idle = {one: wait.since for one, wait in self._waits.items() if wait.phase in ("idle", "header")}
        idle.pop(connection, None)
        self._end(min(idle, key=idle.__getitem__, default=connection))

    def leave(self, connection: Watched) -> None:
        """Forget a connection."""
        self._waits.pop(connection, None)

    def sweep(self, now: float) -> None:
        """End the connections that have waited too long; ``now``: seconds of the loop's clock."""
        self._look(now)
        limits = self.limits
        for connection in [one for one, wait in self._waits.items() if now - wait.since >= limits.seconds(wait.phase)]:
            self._end(connection)

    def _look(self, now: float) -> None:
        for connection, wait in self._waits.items():
            phase, progress = connection.phase(), connection.progress()
            if (phase, progress) != (wait.phase, wait.progress):
                wait.phase, wait.progress, wait.since = phase, progress, now

    def _end(self, connection: Watched) -> None:
        self.leave(connection)
        connection.abort()


class GuardedProtocol(H11Protocol):
    """uvicorn's HTTP protocol, watched; ``guarded`` makes the class with its connections."""

    watch: Connections

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Enter the connection, and look at all of them from now on."""
        super().connection_made(transport)
        ssl_object = transport.get_extra_info("ssl_object")
        if ssl_object is not None:
            self.app = with_certificate(self.app, ssl_object.getpeercert(binary_form=True))
        self._received = 0
        is_first = len(self.watch) == 0
        self.watch.enter(self, self.loop.time())
        if is_first:
            self.loop.call_later(self.watch.limits.tick_s, _sweep, self.watch, self.loop)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self.watch.leave(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what came."""
        self._received += len(data)
        super().data_received(data)

    def phase(self) -> Phase:
        """See Watched."""
        if self.transport.get_write_buffer_size() > 0:
            return "sending"
        theirs = self.conn.their_state
        if theirs is h11.SEND_BODY:
            return "at work" if self.flow.read_paused else "body"
        if theirs is h11.IDLE:
            return "header" if self.cycle is None or self.conn.trailing_data[0] else "idle"
        return "at work"

    def progress(self) -> Hashable:
        """See Watched; more bytes of a header are none."""
        theirs = self.conn.their_state
        received = self._received if theirs is h11.SEND_BODY else 0
        return self.cycle, received, self.transport.get_write_buffer_size()

    def abort(self) -> None:
        """See Watched."""
        own = self.transport.get_extra_info("socket")
        if own is not None and self.transport.get_write_buffer_size() > 0:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self.transport.abort()


def with_certificate(app: Any, certificate: bytes | None) -> Any:  # noqa: ANN401 an ASGI application
    """Return an application that finds its client's certificate (DER) in ``extensions["tls"]`` of each scope.

    Args:
        app: the application.
        certificate: the certificate, which the TLS context has verified; None: the client has shown none.
    """

    async def wrapped(scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401
        extensions = {**scope.get("extensions", {}), "tls": {"client_certificate": certificate}}
        await app({**scope, "extensions": extensions}, receive, send)

    return wrapped


def _sweep(watch: Connections, loop: asyncio.AbstractEventLoop) -> None:
    watch.sweep(loop.time())
    if len(watch):
        loop.call_later(watch.limits.tick_s, _sweep, watch, loop)


def guarded(limits: Limits) -> type[GuardedProtocol]:
    """Return a protocol class for one server: ``uvicorn.Config(http=…)``."""

    class Guarded(GuardedProtocol):
        watch = Connections(limits)

    return Guarded
