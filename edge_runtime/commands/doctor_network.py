"""Checks of ``covey-edge doctor`` on broker and server: they connect as ``run`` does and ask for what it needs."""

from __future__ import annotations

import json
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from edge_runtime.agent.broker_access import device_access
from edge_runtime.commands.finding import Finding, access_finding, problem
from edge_runtime.errors import CoveyError, EnrolmentError, NetworkError
from edge_runtime.network.address import parse_broker
from edge_runtime.network.echo import comes_back, kept_message
from edge_runtime.network.fetch import blob_base
from edge_runtime.network.http_causes import answer_cause, not_covey
from edge_runtime.network.https import AnswerError, BrokenTransferError, Https
from edge_runtime.network.upload import PIECE_BYTES
from edge_runtime.protocol.topics import hello_topic, topic_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edge_runtime.agent.config import EdgeConfig
    from edge_runtime.network.address import BrokerAddress, TlsFiles

_TIMEOUT_S = 5.0
_NO_BLOB = "/" + "0" * 64


def membership_findings(config: Path) -> Iterator[Finding]:
    """Ask the server's joining side whether a device that has joined with a token is still a member."""
    from edge_runtime.trust.folder import IdentityFolder

    if not IdentityFolder(config).path.is_dir():
        return
    from edge_runtime.trust.membership import ask_membership, no_member

    try:
        name = ask_membership(config)
    except EnrolmentError as error:
        yield problem("membership", no_member(error).error(), {"member": False})
    except NetworkError as error:
        yield Finding("membership", "warning", f"not known: {error.what}", error.hint, {"member": None})
    except CoveyError as error:
        yield problem("membership", error, {"member": None})
    else:
        yield Finding("membership", "ok", f"the server knows this device as {name}", "", {"member": True, "name": name})


def broker_findings(config: EdgeConfig) -> Iterator[Finding]:
    """Log in to the broker, subscribe and publish where the device does, and see that messages arrive."""
    try:
        address = parse_broker(config.broker)
        access = device_access(config)
    except CoveyError as error:
        yield problem("broker", error, {"reachable": None})
        return
    found = access_finding(access, str(address.place(config.tls)), "this device")
    yield found
    if found.values["reachable"]:
        yield _round_trip(config, address)
        yield _hello(config, address)


def _round_trip(config: EdgeConfig, address: BrokerAddress) -> Finding:
    """Publish where the device may read too, and see whether the message comes back."""
    topic = topic_for(config.fleet, config.name, "probe")
    if comes_back(address, f"covey-{config.fleet}-{config.name}-echo", config.tls, topic):
        return Finding("round trip", "ok", f"a message on {topic} comes back", "", {"comes_back": True})
    found = f"a message on {topic} does not come back: the broker's access list drops it"
    advice = f"let this device read and write {topic}: covey-edge profile measures its link there"
    return Finding("round trip", "warning", found, advice, {"comes_back": False})


def _hello(config: EdgeConfig, address: BrokerAddress) -> Finding:
    """Look for the server's hello, which the broker keeps; ``run`` waits for it."""
    topic, check = hello_topic(config.fleet), "hello"
    hello = kept_message(address, f"covey-{config.fleet}-{config.name}-listen", config.tls, topic)
    if hello is None:
        found = f"no hello of a server is kept on {topic}: this device would wait for one"
        advice = (
            f"start covey serve --fleet {config.fleet} on this broker; if it runs, the access list keeps {topic} from "
            "the server (covey doctor says so) or from this device, or the broker keeps no messages (retain)"
        )
        return Finding(check, "warning", found, advice, {"hello": None})
    if config.signing is None:
        return Finding(check, "ok", f"a server says hello on {topic}", "", {"hello": "unsigned"})
    from edge_runtime.signing.hello import check_hello

    try:
        key = check_hello(hello, config.fleet, config.signing)
    except CoveyError as error:
        return problem(check, error, {"hello": "refused"})
    return Finding(check, "ok", f"the server says hello on {topic}, signed with key {key}", "", {"hello": "signed"})


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
