"""The device's own HTTP endpoint: bounded in connections and time, on this machine's loopback if not told otherwise."""

from __future__ import annotations

import logging
import socket
import threading
import time
from http.server import ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from edge_runtime.errors import ConfigError
from edge_runtime.predictions.http_request import PredictionRequest
from edge_runtime.predictions.rules import address_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.predictions.rules import Address
    from edge_runtime.predictions.service import PredictionService

_LOG = logging.getLogger(__name__)
MOST_CONNECTIONS = 16
LONGEST_ARRIVAL_S = 30.0
"""Seconds that a request may take to arrive."""
_LOOK_S = 0.5
PATIENCE_S = 10.0
"""Seconds that the prediction at work has to end when the device stops."""
_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\nRetry-After: 1\r\n\r\n"
    b'{"error": "too many connections at once", "hint": "send it again after 1 s", "exit_code": 7}'
)


class PredictionServer(ThreadingHTTPServer):
    """Listens, and gives each connection a thread, up to a bound.

    Args:
        address: where it listens; port 0: any free one.
        service: answers.
        token: what every request must bring; None: none.
        clock: returns monotonic seconds.

    Attributes:
        service: see above.
        token: see above.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = MOST_CONNECTIONS

    def __init__(
        self,
        address: Address,
        service: PredictionService,
        token: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.address_family = socket.AF_INET6 if address.is_v6 else socket.AF_INET
        self.service, self.token = service, token
        self._address, self._clock = address, clock
        self._free = threading.BoundedSemaphore(MOST_CONNECTIONS)
        self._arriving: dict[socket.socket, float] = {}
        self._lock = threading.Lock()
        super().__init__((address.host, address.port), PredictionRequest)

    def is_own_name(self, host: str) -> bool:
        """Whether a Host header names this endpoint; a page that has its own name point here does not.

        Where other machines may ask, their names for this one are not known, and the token decides.
        """
        if not self._address.is_loopback:
            return True
        try:
            name = urlsplit(f"//{host}").hostname
        except ValueError:
            return False
        return name in {"localhost", self._address.host}

    def has_arrived(self, connection: socket.socket) -> None:
        """Say that a request is here as a whole: its answer may take its time."""
        with self._lock:
            self._arriving.pop(connection, None)

    # -- what socketserver calls --------------------------------------------------------------------------------

    def server_bind(self) -> None:
        """Bind the socket, without asking a name server for this machine's name, as HTTPServer does."""
        if self._address.is_v6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind((self._address.host, self._address.port))
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = self._address.host, self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 socketserver's types
        """Give a connection a thread, or say that there are too many."""
        if not self._free.acquire(blocking=False):
            self._refuse(request)
            return
        with self._lock:
            self._arriving[request] = self._clock() + LONGEST_ARRIVAL_S
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread could be begun
            self._end(request)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 socketserver's types
        """Handle a connection, and free its place."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._end(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 socketserver's types
        """Log what a connection has failed with."""
        del request, client_address
        _LOG.debug("a connection to the predictions ended", exc_info=True)

    def service_actions(self) -> None:
        """End connections whose request takes too long to arrive."""
        now = self._clock()
        with self._lock:
            late = [connection for connection, until in self._arriving.items() if now > until]
            for connection in late:
                del self._arriving[connection]
        for connection in late:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # it has ended itself

    def _end(self, request: socket.socket) -> None:
        self.has_arrived(request)
        self._free.release()

    def _refuse(self, request: socket.socket) -> None:
        try:
            request.settimeout(1.0)
            request.sendall(_BUSY)
        except OSError as error:
            _LOG.debug("a connection too many is gone: %s", error)
        self.shutdown_request(request)


class Endpoint:
    """A PredictionServer in a thread.

    Args:
        listen: ``[predict] listen``.
        service: answers.
        token: see PredictionServer.

    Raises:
        ConfigError: it cannot listen there.
    """

    def __init__(self, listen: str, service: PredictionService, token: str | None) -> None:
        try:
            self._server = PredictionServer(address_of(listen), service, token)
        except OSError as error:
            raise ConfigError(
                f"[predict] listen: cannot listen on {listen}: {error.strerror}",
                "choose another port, or end what listens there (ss -ltnp shows it)",
            ) from error
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_LOOK_S,), name="predictions", daemon=True
        )
        self._thread.start()
        _LOG.info("predictions on http://%s", listen)

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._server.server_port

    def close(self) -> None:
        """Listen no more, and let the prediction at work end; nothing is answered afterwards."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._server.service.stop(PATIENCE_S)
