"""The checks of ``covey doctor`` on what a server reaches, and on what devices reach at it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from edge_runtime.commands.finding import Finding, access_finding, problem
from edge_runtime.errors import ConfigError, CoveyError, NetworkError
from edge_runtime.network.address import BrokerAddress, parse_broker
from edge_runtime.network.http_address import bracketed
from edge_runtime.network.http_causes import not_covey
from edge_runtime.network.https import AnswerError, BrokenTransferError, Https
from edge_runtime.protocol.topics import servers_topic
from edge_runtime.trust.exchange import JoinServer
from server.serving.broker_access import hears_itself, server_access
from server.serving.security import broker_files
from server.trust.folder import has_trust, open_trust
from server.web.broker import EMBEDDED

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from edge_runtime.network.address import TlsFiles
    from server.serving.options import ServeOptions

_TIMEOUT_S = 5.0
_HERE = "127.0.0.1"
_EVERY_INTERFACE = ("0.0.0.0", "::")  # noqa: S104 compared, not bound


def broker_findings(options: ServeOptions, running: Mapping[str, Any]) -> Iterator[Finding]:
    """Log in to the broker, subscribe and publish where the server does, and see that a message comes back.

    Args:
        options: the server's.
        running: what a running server says of itself; ``running`` is None or False: there is none.
    """
    try:
        tls = broker_files(options)
        address = _broker_address(options, running)
        if address is None:
            yield _embedded(options, running)
            return
        access = server_access(address, options.fleet, tls)
    except CoveyError as error:
        yield problem("broker", error)
        return
    found = access_finding(access, str(address.place(tls)), "the server")
    yield found
    if found.values["reachable"]:
        yield _round_trip(options.fleet, address, tls)


def _broker_address(options: ServeOptions, running: Mapping[str, Any]) -> BrokerAddress | None:
    """Return where a broker can be asked; None: it is the embedded one, and takes devices only or does not run."""
    if options.broker != EMBEDDED:
        return parse_broker(options.broker)
    if not running.get("running") or running.get("mqtt_port") is None or has_trust(options.state_dir):
        return None
    return BrokerAddress(_host(options), int(running["mqtt_port"]), tls=False, username=None, password=None)


def _embedded(options: ServeOptions, running: Mapping[str, Any]) -> Finding:
    """Say what can be known of an embedded broker from outside."""
    values = {"address": EMBEDDED}
    try:
        import iotcore  # noqa: F401 whether it can be imported is the question
    except ImportError as error:
        missing = ConfigError(f"the embedded broker is not installed ({error})", "pip install 'covey[server]'")
        return problem("broker", missing)
    if running.get("running") and has_trust(options.state_dir):
        found = "the embedded broker takes this fleet's devices only; the server is connected to it"
        return Finding("broker", "ok", found, "on a device: covey-edge doctor --config edge.toml", values)
    return Finding("broker", "ok", "the embedded broker is installed", "", values)


def _round_trip(fleet: str, address: BrokerAddress, tls: TlsFiles | None) -> Finding:
    topic = servers_topic(fleet)
    if hears_itself(address, fleet, tls):
        return Finding("round trip", "ok", f"a message on {topic} comes back", "", {"comes_back": True})
    found = f"a message on {topic} does not come back: the broker's access list drops it"
    advice = f"let the server read and write {topic}, where it finds a second server of its fleet"
    return Finding("round trip", "problem", found, advice, {"comes_back": False}, NetworkError.exit_code)


# -- what devices ask -----------------------------------------------------------------------------------------------


def fetch_findings(options: ServeOptions, running: Mapping[str, Any]) -> Iterator[Finding]:
    """Ask a running server's HTTP side and joining side, as devices do."""
    if not running.get("running"):
        return
    yield _http_side(options, int(running["http_port"]))
    if running.get("join_port") is not None and has_trust(options.state_dir):
        yield _joining_side(options, int(running["join_port"]))


def _http_side(options: ServeOptions, port: int) -> Finding:
    """Ask for the health. Of a fleet with an authority the side answers members only: the server is told so, by it."""
    is_secure = has_trust(options.state_dir)
    url = f"{'https' if is_secure else 'http'}://{bracketed(_host(options))}:{port}"
    check, values = "http side", {"url": url}
    try:
        server = Https(url, broker_files(options) if is_secure else None, _TIMEOUT_S)
        with server.open("GET", "/healthz") as answer:
            is_covey = b"covey_version" in answer.read(1000)
    except AnswerError as error:
        if not (is_secure and error.is_own):
            return problem(check, error, values)
        return Finding(check, "ok", f"{url} answers, and takes members only", "", values)
    except BrokenTransferError as error:
        return problem(check, NetworkError(str(error), error.remedy), values)
    except CoveyError as error:
        return problem(check, error, values)
    if not is_covey:
        return problem(check, not_covey(server.place, "/healthz").error(), values)
    return Finding(check, "ok", f"{url} answers", "", values)


def _joining_side(options: ServeOptions, port: int) -> Finding:
    url = f"https://{bracketed(_host(options))}:{port}"
    try:
        trust = open_trust(options.state_dir)
        JoinServer(url, _TIMEOUT_S).authority(trust.authority.sha256, time.time())
    except CoveyError as error:
        return problem("joining side", error, {"url": url})
    return Finding("joining side", "ok", f"{url} shows the fleet's authority", "", {"url": url})


def _host(options: ServeOptions) -> str:
    return _HERE if options.listen in _EVERY_INTERFACE else options.listen
