"""A fleet with an authority whose joining side listens on this machine, and devices that join it."""

from __future__ import annotations

import contextlib
import datetime as dt
import http.client
import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edge_runtime.trust.exchange import trusting
from edge_runtime.trust.join import JoinOptions, join_once
from edge_runtime.trust.keys import certificate_pem
from edge_runtime.trust.messages import DeviceFacts, EdgeFields
from edge_runtime.trust.token import decode_token
from server.storage.ledger import Ledger
from server.storage.ledger_address import LEDGER_FILE
from server.trust.enrolment import Enrolment
from server.trust.folder import Trust, init_trust, open_trust
from server.trust.join_app import make_join_app
from server.trust.rate_limit import Rate, RateLimit
from server.trust.tls import server_context
from server.trust.tokens import make_tokens
from server.web.http_app import serve_http

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from server.web.connections import Limits

FACTS = DeviceFacts("board", "aarch64", "Linux", "0.1.0")
_NO_LIMIT = Rate(1e9, 1e9)


@dataclass
class Site:
    """A fleet whose joining side listens. ``now_s`` is the server's clock, which a test may set."""

    ledger: Ledger
    trust: Trust
    enrolment: Enrolment
    url: str
    now_s: float = field(default_factory=time.time)

    def token(self, name: str, valid_s: float = 3600.0) -> str:
        return self.tokens([name], valid_s)[name]

    def tokens(self, names: list[str], valid_s: float = 3600.0) -> dict[str, str]:
        return make_tokens(self.ledger, self.trust.authority, self.url, names, valid_s, self.now_s)


@contextlib.contextmanager
def joining_site(
    folder: Path,
    *,
    fleet: str = "default",
    hosts: Sequence[str] = ("127.0.0.1", "localhost"),
    needs_approval: bool = False,
    each: Rate = _NO_LIMIT,
    limits: Limits | None = None,
) -> Iterator[Site]:
    """Make a fleet in a folder, and let devices join it until the block ends."""
    trust = init_trust(folder, fleet, hosts, 8443, dt.datetime.now(dt.timezone.utc))
    with _listening(folder, trust, needs_approval=needs_approval, each=each, limits=limits) as site:
        yield site


@contextlib.contextmanager
def joining_again(folder: Path, port: int, host: str = "127.0.0.1") -> Iterator[Site]:
    """Let devices join a fleet that was made before, at a port."""
    with _listening(folder, open_trust(folder), host=host, port=port) as site:
        yield site


@contextlib.contextmanager
def _listening(
    folder: Path,
    trust: Trust,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    needs_approval: bool = False,
    each: Rate = _NO_LIMIT,
    limits: Limits | None = None,
) -> Iterator[Site]:
    with contextlib.closing(Ledger(folder / LEDGER_FILE, durable=False)) as ledger:
        site: Site

        def fields(device: str) -> EdgeFields:
            return EdgeFields(device, trust.fleet, "mqtt://:1883", "http://:8080")

        enrolment = Enrolment(
            ledger, trust, needs_approval=needs_approval, edge_fields=fields, clock_s=lambda: site.now_s
        )
        app = make_join_app(enrolment, RateLimit(time.monotonic, each, _NO_LIMIT))
        tls = server_context(trust, needs_certificate=False)
        with serve_http(app, host, port, limits, tls) as at:
            site = Site(ledger, trust, enrolment, f"https://{host}:{at}")
            yield site


def options(token: str, config: Path, *, may_change: bool = False, url: str | None = None) -> JoinOptions:
    config.parent.mkdir(parents=True, exist_ok=True)
    return JoinOptions(decode_token(token), config, url, "rows.jsonl", may_change, FACTS)


def joined(token: str, config: Path, now_s: float | None = None, *, may_change: bool = False) -> EdgeFields:
    """Join with one attempt."""
    return join_once(options(token, config, may_change=may_change), lambda: time.time() if now_s is None else now_s)


def post(site: Site, path: str, body: bytes, context: ssl.SSLContext | None = None) -> tuple[int, dict[str, Any]]:
    """Send a request as nobody's client would; return status and JSON."""
    context = context or trusting(certificate_pem(site.trust.authority.certificate))
    host = site.url.removeprefix("https://")
    connection = http.client.HTTPSConnection(host, timeout=20, context=context)
    try:
        connection.request("POST", path, body)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()
