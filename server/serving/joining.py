"""Where devices join a fleet and renew their certificates: a listener of its own, after ``covey fleet init``."""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_runtime.trust.messages import EdgeFields
from server.serving.announce import announced
from server.trust.enrolment import Enrolment
from server.trust.join_app import make_join_app
from server.trust.rate_limit import RateLimit
from server.trust.tls import server_context
from server.web.broker import EMBEDDED
from server.web.http_app import serve_http

if TYPE_CHECKING:
    from collections.abc import Iterator

    from server.serving.options import ServeOptions
    from server.serving.security import Security
    from server.storage.ledger import Ledger

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ports:
    """Ports of a running server that devices are told.

    Attributes:
        mqtt: of the embedded broker; None: the broker is another process.
        http: of bundles and adapters.
    """

    mqtt: int | None
    http: int


@contextlib.contextmanager
def serve_joining(
    options: ServeOptions, security: Security | None, ledger: Ledger, ports: Ports
) -> Iterator[int | None]:
    """Let devices join until the block ends; yields the port, or None where the fleet has no authority.

    Raises:
        ConfigError: --announce without the library zeroconf.
        NetworkError: the port is in use; or the server cannot be announced.
        StorageError: the server's certificate or key cannot be used.
    """
    if security is None:
        yield None
        return
    enrolment = Enrolment(
        ledger,
        security.trust,
        needs_approval=options.approve_joins,
        edge_fields=lambda device: edge_fields(options, device, ports),
        clock_s=ledger.now_s,
    )
    app = make_join_app(enrolment, RateLimit(time.monotonic))
    tls = server_context(security.trust, needs_certificate=False)
    with serve_http(app, options.listen, options.join_port, tls=tls) as port:
        _LOG.info("devices join at port %d of %s", port, ", ".join(security.trust.hosts))
        with announced(options, security.trust, port) if options.announce else contextlib.nullcontext():
            yield port


def edge_fields(options: ServeOptions, device: str, ports: Ports) -> EdgeFields:
    """Return what a device writes into its edge.toml. A broker's user and password are the server's own, and left out.

    Args:
        options: the server's addresses.
        device: the device's name.
        ports: the server's ports.
    """
    if options.broker == EMBEDDED:
        broker = f"mqtts://:{ports.mqtt}"
    else:
        scheme, separator, rest = options.broker.partition("://")
        broker = f"{scheme}{separator}{rest.rpartition('@')[2].rstrip('/')}"
    return EdgeFields(device, options.fleet, broker, options.public_url or f"https://:{ports.http}")
