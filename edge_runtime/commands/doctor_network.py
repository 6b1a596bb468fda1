"""Checks of ``covey-edge doctor`` on broker and server: they connect as ``run`` does and ask for what it needs."""

from __future__ import annotations

import json
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from edge_runtime.agent.broker_access import device_access
from edge_runtime.commands.finding import Finding, access_finding, problem
from edge_runtime.errors import CoveyError, NetworkError
from edge_runtime.network.address import parse_broker
from edge_runtime.network.fetch import blob_base
from edge_runtime.network.http_causes import answer_cause, not_covey
from edge_runtime.network.https import AnswerError, BrokenTransferError, Https
from edge_runtime.network.upload import PIECE_BYTES

if TYPE_CHECKING:
    from edge_runtime.agent.config import EdgeConfig
    from edge_runtime.network.address import TlsFiles

_TIMEOUT_S = 5.0
_NO_BLOB = "/" + "0" * 64


def broker_finding(config: EdgeConfig) -> Finding:
    """Log in to the broker, subscribe and publish where the device does."""
    try:
        place = str(parse_broker(config.broker).place(config.tls))
        access = device_access(config)
    except CoveyError as error:
        return problem("broker", error, {"reachable": None})
    return access_finding(access, place, "this device")


def server_finding(url: str | None, tls: TlsFiles | None) -> tuple[Finding, float | None]:
    """Ask the server for its health, for a blob, and whether it takes uploads.

    Args:
        url: the configured address of the server; None: its plans tell it.
        tls: this device's TLS files.

    Returns:
        The finding, and the server's time in seconds since 1970; None: it is not known.
    """
    if url is None:
        found = "not configured: the server tells its address with each plan"
        return Finding("server", "absent", found, "", {"url": None, "reachable": None}), None
    values = {"url": url, "reachable": True}
    server_time = None
    try:
        server_time = _health(Https(url.rstrip("/"), tls, _TIMEOUT_S))
        _check_blobs(Https(blob_base("", "", url), tls, _TIMEOUT_S))
    except CoveyError as error:
        return problem("server", error, values | {"reachable": isinstance(error, AnswerError)}), server_time
    except BrokenTransferError as error:
        broken = NetworkError(str(error), error.remedy)
        return problem("server", broken, values | {"reachable": False}), server_time
    return Finding("server", "ok", f"{url} answers, and takes uploads", "", values), server_time


def _health(server: Https) -> float | None:
    """Return the server's time; raises where it is not covey serve that answers."""
    with server.open("GET", "/healthz") as answer:
        date, body = answer.headers.get("Date"), answer.read(1000)
    try:
        is_covey = "covey_version" in json.loads(body)
    except (ValueError, TypeError, RecursionError):
        is_covey = False
    if not is_covey:
        raise AnswerError(not_covey(server.place, "/healthz"), is_own=False)
    try:
        return parsedate_to_datetime(date).timestamp() if date else None
    except ValueError:
        return None


def _check_blobs(blobs: Https) -> None:
    """Ask for a blob that nobody has, and announce an upload that no plan expects: covey serve itself must refuse."""
    try:
        blobs.open("GET", _NO_BLOB).close()
    except AnswerError as error:
        if not error.is_own:
            raise
    answer = blobs.announce("PATCH", f"{_NO_BLOB}/upload", PIECE_BYTES)
    if answer is not None and not answer.is_own:
        raise AnswerError(answer_cause(answer, blobs.place), is_own=False)
