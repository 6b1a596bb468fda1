"""Sends requests to applications: to an ASGI application in this process, and as raw bytes over a socket."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

import h11


def ask(app: Any, method: str, path: str, body: bytes, extensions: dict[str, Any]) -> tuple[int, bytes]:
    """Return status and body of an ASGI application's answer; its exceptions pass."""
    sent: list[dict[str, Any]] = []
    waiting = [{"type": "http.request", "body": body, "more_body": False}, {"type": "http.disconnect"}]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "scheme": "https",
        "headers": [(b"content-type", b"application/json")],
        "client": ("192.0.2.1", 1234),
        "server": ("server", 8443),
        "extensions": extensions,
    }

    async def receive() -> dict[str, Any]:
        return waiting.pop(0) if len(waiting) > 1 else waiting[0]

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return int(sent[0]["status"]), b"".join(message.get("body", b"") for message in sent[1:])


def exchange(connection: socket.socket, data: bytes) -> bytes:
    """Send bytes over a connection and return what is answered; where they are no whole request, nobody waits for it.

    Raises:
        TimeoutError: a whole request, or one that can be none, is neither answered nor is its connection closed.
    """
    connection.settimeout(20.0)
    answer = b""
    with connection, contextlib.suppress(ConnectionError):
        connection.sendall(data)
        if not _can_be_answered(data):
            connection.shutdown(socket.SHUT_WR)
        while piece := connection.recv(65536):
            answer += piece
            connection.settimeout(0.1)  # the connection may be kept for a next request
            if b"connection: close" not in answer.lower():
                with contextlib.suppress(TimeoutError):
                    answer += connection.recv(1 << 20)
                break
            connection.settimeout(20.0)
    return answer


def _can_be_answered(data: bytes) -> bool:
    """Whether bytes hold a whole request, or something that can never become one."""
    if not data:
        return False  # h11 would take it for the end of the connection
    parser = h11.Connection(h11.SERVER)
    parser.receive_data(data)
    try:
        while (event := parser.next_event()) is not h11.NEED_DATA:
            if event is h11.PAUSED or isinstance(event, (h11.EndOfMessage, h11.ConnectionClosed)):
                return True
    except h11.RemoteProtocolError:
        return True
    return False


def statuses(answer: bytes) -> list[int]:
    """Return the status of the answer's first response; empty where the connection was closed without one."""
    first = answer.split(b"\r\n", 1)[0].split(b" ")
    return [int(first[1])] if first[0].startswith(b"HTTP/1.") and len(first) > 1 and first[1].isdigit() else []
