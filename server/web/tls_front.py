"""TLS before the embedded broker: takes members' connections, and passes their bytes to its plain port on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from server.web.connections import Limits
from server.web.http_app import bind

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Iterator

_LOG = logging.getLogger(__name__)
_HERE = "127.0.0.1"
_LOOK_S = 0.25
"""Seconds between two looks for certificates that were revoked."""
_SAY_AGAIN_S = 60.0
_PIECE_BYTES = 1 << 16
_END_S = 10.0


class Admits(Protocol):
    """Who may connect; see server.trust.members.Members."""

    @property
    def version(self) -> object:
        """Another object after each change."""

    def admits(self, certificate: bytes) -> str | None:
        """Return a member's name; None: the certificate is no member's."""


@dataclass(eq=False)
class _Link:
    name: str
    certificate: bytes
    address: str
    writer: asyncio.StreamWriter


class TlsFront:
    """Takes TLS connections and passes their bytes on.

    Args:
        context: shows the server's certificate, and demands one of each client.
        members: who may connect; a connection ends when its certificate is revoked.
        port: the broker's plain port on this machine.
        limits: how long a handshake may take, and how many connections there may be; None: the usual limits.
    """

    def __init__(self, context: ssl.SSLContext, members: Admits, port: int, limits: Limits | None = None) -> None:
        self._context, self._members, self._port = context, members, port
        self._limits = limits or Limits()
        self._links: set[_Link] = set()
        self._refused_at: dict[str, float] = {}  # when it was said, by address

    async def serve(self, listener: socket.socket, stop: asyncio.Event) -> None:
        """Serve a listening socket until ``stop`` is set."""
        version = self._members.version
        server = await asyncio.start_server(
            self.take, sock=listener, ssl=self._context, ssl_handshake_timeout=self._limits.header_s
        )
        while not stop.is_set():
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(stop.wait(), _LOOK_S)
            if self._members.version is not version:
                version = self._members.version
                self._drop_strangers()
        server.close()
        for link in list(self._links):
            link.writer.transport.abort()

    def _drop_strangers(self) -> None:
        for link in list(self._links):
            if self._members.admits(link.certificate) is None:
                _LOG.warning("%s at %s is not a member any more: its connection is closed", link.name, link.address)
                link.writer.transport.abort()

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection, whose handshake is done."""
        address = str((writer.get_extra_info("peername") or ("unknown",))[0])
        certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True) or b""
        name = self._members.admits(certificate)
        if name is None:
            self._say_refused(address)
        elif len(self._links) >= self._limits.most_at_once:
            _LOG.warning("%s at %s is turned away: there are %d connections already", name, address, len(self._links))
        else:
            link = _Link(name, certificate, address, writer)
            self._links.add(link)
            try:
                await self._pass_on(reader, writer)
            finally:
                self._links.discard(link)
        writer.transport.abort()

    def _say_refused(self, address: str) -> None:
        """Say it once a minute for each address: a device that was thrown out tries again for ever."""
        now = time.monotonic()
        self._refused_at = {known: at for known, at in self._refused_at.items() if now - at < _SAY_AGAIN_S}
        if self._refused_at.setdefault(address, now) == now:
            _LOG.warning("connections from %s are refused: the certificate is revoked, or was never issued", address)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inner_reader, inner_writer = await asyncio.open_connection(_HERE, self._port)
        except OSError as error:
            _LOG.error("the embedded broker takes no connection: %s", error)
            return
        both = {asyncio.create_task(_pump(reader, inner_writer)), asyncio.create_task(_pump(inner_reader, writer))}
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in both:
                task.cancel()
            await asyncio.gather(*both, return_exceptions=True)
            inner_writer.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass on what is read until one side ends; what was read last is still sent."""
    with contextlib.suppress(OSError):
        while data := await reader.read(_PIECE_BYTES):
            writer.write(data)
            await writer.drain()


@contextlib.contextmanager
def tls_front(context: ssl.SSLContext, members: Admits, host: str, port: int, inner_port: int) -> Iterator[int]:
    """Let members connect by TLS until the block ends; yields the port.

    Args:
        context: see TlsFront.
        members: see TlsFront.
        host: the address to listen on.
        port: the port; 0: a free one.
        inner_port: the broker's plain port on this machine.

    Raises:
        NetworkError: the address cannot be bound.
    """
    listener = bind(host, port)
    front = TlsFront(context, members, inner_port)
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def serve() -> None:
        await front.serve(listener, stop)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*left, return_exceptions=True)  # their connections have just been ended

    def run() -> None:
        with contextlib.closing(loop):
            loop.run_until_complete(serve())

    thread = threading.Thread(target=run, name="mqtts", daemon=True)
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(_END_S)
        listener.close()
