"""``POST /join``, ``POST /renew``, ``GET /me`` and ``GET /ca`` as a small application; errors are JSON with a hint."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from cryptography import x509
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route

from edge_runtime.errors import CoveyError, EnrolmentError, NetworkError, ProtocolError, as_covey_error, wall
from edge_runtime.output import one_line
from edge_runtime.trust.keys import certificate_pem
from edge_runtime.trust.messages import MOST_BYTES, JoinRequest, Refusal, RenewRequest

if TYPE_CHECKING:
    from starlette.requests import Request

    from server.trust.enrolment import Enrolment
    from server.trust.rate_limit import RateLimit

_LOG = logging.getLogger(__name__)
_OLD = "update Covey on the device"
T = TypeVar("T")


def make_join_app(enrolment: Enrolment, limit: RateLimit) -> Starlette:
    """Return the application.

    A client's certificate is in the scope's ``extensions["tls"]["client_certificate"]`` (DER); the listener has checked
    that the fleet's authority signed it.

    Args:
        enrolment: decides.
        limit: how often an address may ask.
    """

    async def authority(request: Request) -> Response:
        _count(request, limit)
        pem = certificate_pem(enrolment.trust.authority.certificate)
        return Response(pem, media_type="application/x-pem-file", headers={"cache-control": "no-store"})

    async def join(request: Request) -> Response:
        address = _count(request, limit)
        asked = await _body(request, JoinRequest)
        try:
            answer = await run_in_threadpool(enrolment.join, asked, address)
        except EnrolmentError as error:
            if error.is_guess:
                limit.guessed(address)
            _LOG.warning("%s may not join: %s", address, one_line(error.what))
            raise
        return _json(202 if answer.state == "pending" else 200, answer)

    async def renew(request: Request) -> Response:
        address = _count(request, limit)
        shown = _client_certificate(request)
        asked = await _body(request, RenewRequest)
        try:
            answer = await run_in_threadpool(enrolment.renew, shown, asked.csr)
        except EnrolmentError as error:
            _LOG.warning("%s may not renew a certificate: %s", address, one_line(error.what))
            raise
        return _json(200, answer)

    async def whois(request: Request) -> Response:
        _count(request, limit)
        return _json(200, await run_in_threadpool(enrolment.whois, _client_certificate(request)))

    return Starlette(
        routes=[
            Route("/ca", authority, methods=["GET"]),
            Route("/join", join, methods=["POST"]),
            Route("/renew", renew, methods=["POST"]),
            Route("/me", whois, methods=["GET"]),
        ],
        exception_handlers={CoveyError: _refused, HTTPException: _no_such, Exception: _fault},
    )


class _TooManyError(NetworkError):
    """An address asks too often."""

    def __init__(self, wait_s: float) -> None:
        super().__init__("too many requests from this address", f"try again in {math.ceil(wait_s)} s")
        self.wait_s = wait_s


class _TooLargeError(ProtocolError):
    """A body is larger than any request."""


def _count(request: Request, limit: RateLimit) -> str:
    """Count a request; return the address that it came from.

    Raises:
        NetworkError: the address asks too often.
    """
    address = "unknown" if request.client is None else request.client.host
    if (wait_s := limit.wait_s(address)) > 0:
        raise _TooManyError(wait_s)
    return address


async def _body(request: Request, kind: type[T]) -> T:
    """Return a request's body, of which no more is read than a request can have.

    Raises:
        ProtocolError: it is larger, or is not what it should be; the message does not quote it.
    """
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > MOST_BYTES:
            raise _TooLargeError(f"the request is larger than {MOST_BYTES} bytes", _OLD)
    with wall(lambda _cause: ProtocolError("the request is not what this version of Covey expects", _OLD)):
        return msgspec.json.decode(data, type=kind)


def _client_certificate(request: Request) -> x509.Certificate:
    """Return the certificate that the device has shown.

    Raises:
        EnrolmentError: it has shown none.
    """
    data = request.scope.get("extensions", {}).get("tls", {}).get("client_certificate")
    if data is None:
        raise EnrolmentError(
            "the device has shown no certificate", "set cert_file and key_file in [tls] of edge.toml, or join anew"
        )
    with wall(lambda cause: ProtocolError(f"the device's certificate cannot be read: {cause}", "join anew")):
        return x509.load_der_x509_certificate(data)


def _json(status: int, content: Any, headers: dict[str, str] | None = None) -> Response:  # noqa: ANN401 a struct
    return Response(
        msgspec.json.encode(content),
        status,
        media_type="application/json",
        headers={"cache-control": "no-store", **(headers or {})},
    )


def _problem(status: int, error: CoveyError, headers: dict[str, str] | None = None) -> Response:
    return _json(status, Refusal(error.what[:1000], error.hint[:1000], error.exit_code), headers)


async def _refused(_request: Request, error: Exception) -> Response:
    if isinstance(error, _TooManyError):
        return _problem(429, error, {"retry-after": str(math.ceil(error.wait_s))})
    if isinstance(error, _TooLargeError):
        return _problem(413, error, {"connection": "close"})
    if isinstance(error, EnrolmentError):
        return _problem(403, error)
    if isinstance(error, ProtocolError):
        return _problem(400, error)
    assert isinstance(error, CoveyError)  # noqa: S101 it is registered for these
    return await _fault(_request, error)


async def _no_such(_request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 404
    return _problem(
        status,
        NetworkError(f"the joining side answers {status} here", "it has POST /join, POST /renew, GET /me and GET /ca"),
    )


async def _fault(_request: Request, error: Exception) -> Response:
    """Answer an error of the server itself: the device learns that it may try again, the log learns why."""
    _LOG.error("a device could not be served: %s", as_covey_error(error), exc_info=error)
    return _problem(
        503, NetworkError("the server cannot answer now", "read the server's log, it says why"), {"retry-after": "5"}
    )
