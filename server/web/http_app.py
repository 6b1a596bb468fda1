"""The HTTP side: resumable downloads and uploads of blobs, and a health check. Starlette on uvicorn, in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import socket
import threading
from typing import TYPE_CHECKING, Any, Protocol

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edge_runtime import __version__
from edge_runtime.errors import NetworkError
from server.web.blob_answers import NEVER_CACHED, blob_answer
from server.web.blob_waits import BlobWaits
from server.web.connections import Limits, guarded
from server.web.members_only import MEMBER

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator

    from starlette.requests import Request

    from server.storage.blobs import BlobStore
    from server.web.uploads import Uploads


class Releases(Protocol):
    """What the server has signed, for devices that ask."""

    def release_of(self, sha256: str) -> bytes | None:
        """Return the signed release of a hash; None: it was not released."""

    def key_list(self) -> bytes:
        """Return the signed list of release keys."""


def make_app(
    blobs: BlobStore,
    uploads: Uploads | None = None,
    releases: Releases | None = None,
    waits: BlobWaits | None = None,
) -> Starlette:
    """Return the application: ``GET /blobs/<sha256>`` (see blob_answers.py) and ``GET /healthz``.

    Where the blobs are in a bucket that does not answer, devices are told to come again (503, see blob_waits.py).

    Releases are below ``/blobs`` too, so that a proxy which passes blobs on passes them on: ``GET
    /blobs/<sha256>/release``, and ``GET /blobs/release-keys``. Without ``releases`` both answer that there is none.
    With ``uploads`` also ``HEAD`` and ``PATCH /blobs/<sha256>/upload``.

    Args:
        blobs: what is served.
        uploads: what devices may send; None: nothing.
        releases: what the server has signed; None: nothing.
        waits: how long a request waits for a blob from a bucket; None: as long as is usual.
    """
    own_waits = waits or BlobWaits()

    async def blob(request: Request) -> Response:
        sha256 = request.path_params["sha256"]
        path = await own_waits.path(blobs, sha256)
        if path is None:
            raise HTTPException(404, "no such blob", {"cache-control": NEVER_CACHED})
        return blob_answer(request, sha256, path)

    async def health(_request: Request) -> Response:
        return JSONResponse({"status": "ok", "covey_version": __version__})

    async def upload(request: Request) -> Response:
        assert uploads is not None  # noqa: S101 the route exists only with uploads
        sha256, member = request.path_params["sha256"], request.scope.get(MEMBER)
        if request.method == "HEAD":
            return await uploads.head(sha256, member)
        return await uploads.patch(sha256, request, member)

    async def release(request: Request) -> Response:
        found = None
        if releases is not None:
            found = await run_in_threadpool(releases.release_of, request.path_params["sha256"])
        return _statement(found)

    async def release_keys(_request: Request) -> Response:
        return _statement(None if releases is None else await run_in_threadpool(releases.key_list))

    routes = [
        Route("/blobs/release-keys", release_keys),
        Route("/blobs/{sha256}", blob),
        Route("/blobs/{sha256}/release", release),
        Route("/healthz", health),
    ]
    if uploads is not None:
        routes.append(Route("/blobs/{sha256}/upload", upload, methods=["HEAD", "PATCH"]))
    return Starlette(routes=routes)


def _statement(data: bytes | None) -> Response:
    if data is None:
        raise HTTPException(404, "no such release", {"cache-control": NEVER_CACHED})
    return Response(data, media_type="application/octet-stream", headers={"cache-control": NEVER_CACHED})


@contextlib.contextmanager
def serve_http(
    app: Callable[..., Any], host: str, port: int, limits: Limits | None = None, tls: ssl.SSLContext | None = None
) -> Iterator[int]:
    """Serve an application in a thread until the block ends; yields the port.

    Args:
        app: the application.
        host: the address to listen on.
        port: the port; 0: a free one.
        limits: how long connections may wait, and how many there may be; None: the usual limits.
        tls: for HTTPS; None: plain HTTP.

    Raises:
        NetworkError: the address cannot be bound.
    """
    listener = bind(host, port)
    with serve_on(app, listener, limits, tls):
        yield int(listener.getsockname()[1])


@contextlib.contextmanager
def serve_on(
    app: Callable[..., Any], listener: socket.socket, limits: Limits | None = None, tls: ssl.SSLContext | None = None
) -> Iterator[None]:
    """Serve an application on a listening socket in a thread until the block ends; closes the socket.

    Args:
        app: the application.
        listener: the socket.
        limits: how long connections may wait, and how many there may be; None: the usual limits.
        tls: for HTTPS; None: plain HTTP.
    """
    limits = limits or Limits()
    config = uvicorn.Config(
        app,
        http=guarded(limits),
        ws="none",
        log_config=None,  # uvicorn's own would close the handlers of everyone else in the process
        log_level="warning",
        access_log=False,
        proxy_headers=False,  # or whoever is on this machine could say that a request comes from elsewhere
        timeout_keep_alive=math.ceil(limits.keep_alive_s),
    )
    server = uvicorn.Server(config)
    run = functools.partial(server.run, sockets=[listener])
    if tls is not None:
        config.load()
        config.ssl = tls  # uvicorn makes a context from files only, and none with optional client certificates
        run = functools.partial(_run_tls, server, listener, limits.header_s)
    thread = threading.Thread(target=run, name="http", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(10.0)
        listener.close()


def _run_tls(server: uvicorn.Server, listener: socket.socket, handshake_s: float) -> None:
    """Run a server whose TLS handshakes may take some seconds; uvicorn would let each keep a descriptor for 60 s."""

    class Loop(asyncio.SelectorEventLoop):
        async def create_server(self, *args: Any, **named: Any) -> asyncio.Server:  # noqa: ANN401
            return await super().create_server(*args, **named, ssl_handshake_timeout=handshake_s)

    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(server.serve(sockets=[listener]))


def bind(host: str, port: int) -> socket.socket:
    """Return a listening TCP socket.

    Raises:
        NetworkError: the address is in use, or does not belong to this machine.
    """
    # asyncio sends small pieces at once (TCP_NODELAY) only where the socket names its protocol; else each waits 40 ms.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise NetworkError(
            f"cannot listen on {host}:{port}: {error.strerror or error}", "choose another port"
        ) from error
    return listener
