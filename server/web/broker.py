"""The broker: an external one by its address, or an embedded one (iotcore, which runs rumqttd)."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

from edge_runtime.errors import ConfigError, NetworkError
from edge_runtime.network.address import BrokerAddress, parse_broker
from edge_runtime.protocol.messages import MAX_PAYLOAD_BYTES
from server.web.http_app import bind

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOG = logging.getLogger(__name__)
EMBEDDED = "embedded"
_TOPIC_BYTES = 1024
_EVERY_INTERFACE = ("0.0.0.0", "::")  # noqa: S104 compared, not bound


@contextlib.contextmanager
def open_broker(broker: str, host: str, port: int) -> Iterator[BrokerAddress]:
    """Yield the broker's address; the embedded broker, if asked for, runs until the block ends.

    Args:
        broker: ``embedded``, or an address such as ``mqtt://host:1883``.
        host: address that the embedded broker listens on.
        port: port of the embedded broker; 0: a free one.

    Raises:
        ConfigError: the address is malformed, or iotcore is not installed.
        NetworkError: the port is in use, or the embedded broker does not start.
    """
    if broker != EMBEDDED:
        yield parse_broker(broker)
        return
    try:
        from iotcore import Broker  # noqa: PLC0415 a remote broker needs none
    except ImportError as error:
        raise ConfigError(
            f"the embedded broker is not installed ({error})",
            "pip install 'covey[server]', or give --broker mqtt://host:1883",
        ) from error
    with bind(host, port) as probe:  # raises a clear error when the port is in use, and frees it again
        chosen = int(probe.getsockname()[1])
    embedded = Broker(port=chosen, listen=host, max_payload_size=MAX_PAYLOAD_BYTES + _TOPIC_BYTES)
    try:
        embedded.start()
    except (OSError, RuntimeError) as error:
        raise NetworkError(f"the embedded broker does not start: {error}", "choose another --mqtt-port") from error
    _LOG.info("embedded broker on %s:%d (no TLS, no passwords: for a trusted network)", host, chosen)
    try:
        yield BrokerAddress(
            host="127.0.0.1" if host in _EVERY_INTERFACE else host,
            port=chosen,
            tls=False,
            username=None,
            password=None,
        )
    finally:
        embedded.stop()
