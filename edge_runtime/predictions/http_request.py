"""One HTTP request to the device's own endpoint: who may send it, how large it may be, and what is answered."""

from __future__ import annotations

import hmac
import json
import logging
import math
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any, Protocol, cast
from urllib.parse import urlsplit

from edge_runtime.errors import (
    BundleError,
    ConfigError,
    DataError,
    FaultError,
    StorageError,
    TrainingError,
    as_covey_error,
    as_exception,
)
from edge_runtime.predictions.limits import TooManyError
from edge_runtime.predictions.service import read_ask, read_rows

if TYPE_CHECKING:
    import socket

    from edge_runtime.errors import CoveyError
    from edge_runtime.predictions.service import PredictionService

_LOG = logging.getLogger(__name__)
MOST_BODY_BYTES = 1_100_000
"""A correction of the longest text that is kept, of ASCII characters, fits."""
_MOST_DISCARDED_BYTES = 4 * MOST_BODY_BYTES
_PART_BYTES = 64 * 1024
_STATUS: tuple[tuple[type[CoveyError], HTTPStatus], ...] = (
    (TooManyError, HTTPStatus.TOO_MANY_REQUESTS),
    (DataError, HTTPStatus.BAD_REQUEST),
    (StorageError, HTTPStatus.INSUFFICIENT_STORAGE),
    (ConfigError, HTTPStatus.SERVICE_UNAVAILABLE),
    (BundleError, HTTPStatus.SERVICE_UNAVAILABLE),
    (TrainingError, HTTPStatus.SERVICE_UNAVAILABLE),
)


class RefusedError(DataError):
    """A request that is refused before what it asks for is looked at."""

    def __init__(self, status: HTTPStatus, what: str, hint: str) -> None:
        super().__init__(what, hint)
        self.status = status


class Owner(Protocol):
    """What a request asks of the server that has taken it: http_server.PredictionServer."""

    service: PredictionService
    token: str | None

    def is_own_name(self, host: str) -> bool:
        """Whether a Host header names this endpoint."""

    def has_arrived(self, connection: socket.socket) -> None:
        """Say that a request is here as a whole."""


class PredictionRequest(BaseHTTPRequestHandler):
    """Answers one request; the connection ends with it."""

    protocol_version = "HTTP/1.1"
    server_version = "covey-edge"
    sys_version = ""
    timeout = 30.0  # of one wait for bytes; the server ends what takes longer in all

    def do_GET(self) -> None:
        """Answer ``/healthz``."""
        self._respond(self._healthz)

    def do_POST(self) -> None:
        """Answer ``/predict`` and ``/feedback``."""
        self._respond(self._post)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what http.server itself refuses, as JSON."""
        del explain
        status = HTTPStatus(code)
        self.request_version = self.protocol_version  # http.server takes what it cannot read for HTTP/0.9: no head
        self._send(status, _error_body(message or status.phrase, "see docs/predict.md", DataError.exit_code))

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, ANN401 the name and types of http.server
        """Log a request without what it asked."""
        _LOG.debug("%s", format % args)

    # -- what is asked ------------------------------------------------------------------------------------------

    @property
    def _owner(self) -> Owner:
        return cast("Owner", self.server)

    def _healthz(self) -> dict[str, Any]:
        if urlsplit(self.path).path != "/healthz":
            raise self._unknown()
        return {"status": "ok"}

    def _post(self) -> dict[str, Any]:
        asked = urlsplit(self.path).path
        if asked not in ("/predict", "/feedback"):
            raise self._unknown()
        self._check_sender()
        body = self._body()
        self._owner.has_arrived(self.connection)
        if asked == "/predict":
            return self._owner.service.predict(read_ask(body))
        added = self._owner.service.correct(read_rows(body))
        return {name: getattr(added, name) for name in ("added", "replaced", "repeated", "dropped", "rows")}

    def _unknown(self) -> RefusedError:
        return RefusedError(
            HTTPStatus.NOT_FOUND,
            f"there is no {self.command} {urlsplit(self.path).path[:100]}",
            "there are POST /predict, POST /feedback and GET /healthz",
        )

    def _check_sender(self) -> None:
        """Check that no page of a browser sends this, and that it brings the token.

        Raises:
            RefusedError: see above.
        """
        hint = "this endpoint is for programs, not for pages of a browser"
        if self.headers.get("Origin") is not None:
            raise RefusedError(HTTPStatus.FORBIDDEN, "the request has an Origin", hint)
        if not self._owner.is_own_name(self.headers.get("Host", "")):
            raise RefusedError(HTTPStatus.FORBIDDEN, "the request's Host is no address of this device", hint)
        if self.headers.get_content_type() != "application/json":
            what = "the request's Content-Type is not application/json"
            raise RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, what, "send that header: curl --json does")
        token = self._owner.token
        if token is not None:
            given = self.headers.get("Authorization", "")
            if not hmac.compare_digest(given.encode("utf-8", "replace"), f"Bearer {token}".encode()):
                what = "the request brings no token, or another one"
                raise RefusedError(HTTPStatus.UNAUTHORIZED, what, "send the header Authorization: Bearer TOKEN")

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length")
        if length is None or "Transfer-Encoding" in self.headers:
            raise RefusedError(HTTPStatus.LENGTH_REQUIRED, "the request has no Content-Length", "send that header")
        if not (length.isascii() and length.isdigit() and len(length) <= 15):
            raise RefusedError(HTTPStatus.BAD_REQUEST, "the request's Content-Length is no number", "send its bytes")
        if int(length) > MOST_BODY_BYTES:
            what = f"the request has {int(length)} bytes, {MOST_BODY_BYTES} are allowed"
            raise RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, what, "send less at once")
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise RefusedError(HTTPStatus.BAD_REQUEST, "the request ends within its body", "send all of it")
        return body

    # -- what is answered ---------------------------------------------------------------------------------------

    def _respond(self, answer: Any) -> None:  # noqa: ANN401 one of the two methods above
        headers: dict[str, str] = {}
        try:
            status, values = HTTPStatus.OK, answer()
        except (ConnectionError, TimeoutError):
            self.close_connection = True
            return
        except RefusedError as error:
            status, values = error.status, _error_body(error.what, error.hint, error.exit_code)
            self._discard()
            if status == HTTPStatus.UNAUTHORIZED:
                headers["WWW-Authenticate"] = "Bearer"
        except BaseException as raised:  # noqa: BLE001 a panic of a library too is one request's failure
            caught = as_exception(raised)
            failed = as_covey_error(caught)
            if isinstance(failed, FaultError):
                _LOG.error("a request failed: %s", failed.public, exc_info=caught)
            status = next((s for kind, s in _STATUS if isinstance(failed, kind)), HTTPStatus.INTERNAL_SERVER_ERROR)
            values = _error_body(failed.what, failed.hint, failed.exit_code)
            if isinstance(failed, TooManyError) and failed.retry_after_s is not None:
                headers["Retry-After"] = str(math.ceil(failed.retry_after_s))
        self._send(status, values, headers)

    def _discard(self) -> None:
        """Read what a refused request still sends, within bounds: whoever writes it could not read the answer else."""
        length = self.headers.get("Content-Length", "0")
        left = min(int(length), _MOST_DISCARDED_BYTES) if length.isascii() and length.isdigit() else 0
        try:
            self.connection.settimeout(1.0)
            while left > 0 and (part := self.rfile.read1(min(left, _PART_BYTES))):
                left -= len(part)
        except OSError:
            return  # it is gone, or slow: it has to do without the answer

    def _send(self, status: HTTPStatus, values: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        self.close_connection = True
        data = json.dumps(values).encode()
        try:
            self.send_response(status)
            for name, value in {
                "Content-Type": "application/json",
                "Content-Length": str(len(data)),
                "Cache-Control": "no-store",
                "X-Content-Type-Options": "nosniff",
                "Connection": "close",
                **(headers or {}),
            }.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)
        except OSError as error:
            _LOG.debug("an answer was not taken: %s", error)


def _error_body(what: str, hint: str, exit_code: int) -> dict[str, Any]:
    return {"error": what, "hint": hint, "exit_code": exit_code}
