"""The broker: an external one by its address, or an embedded one (iotcore, which runs rumqttd)."""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import math
import time
from typing import TYPE_CHECKING, Protocol

from edge_runtime.errors import ConfigError, NetworkError, cause_of
from edge_runtime.network.address import BrokerAddress, parse_broker
from edge_runtime.protocol.messages import MAX_PAYLOAD_BYTES
from server.web.http_app import bind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_LOG = logging.getLogger(__name__)
EMBEDDED = "embedded"
_TOPIC_BYTES = 1024
_EVERY_INTERFACE = ("0.0.0.0", "::")  # noqa: S104 compared, not bound


_LOOK_S = 0.5
"""Seconds between two looks at a broker that is starting."""
_SAY_S = 10.0
"""Seconds between two lines about a broker that is starting."""


class Startable(Protocol):
    """An embedded broker: iotcore's Broker."""

    def start(self, timeout: float) -> object:
        """Start it; return when it listens, raise OSError or RuntimeError where it cannot or has ended."""

    def stop(self) -> None:
        """End it, also where it is starting."""


@contextlib.contextmanager
def open_broker(
    broker: str, host: str, port: int, should_stop: Callable[[], bool] = lambda: False
) -> Iterator[BrokerAddress]:
    """Yield the broker's address; the embedded broker, if asked for, runs until the block ends.

    Args:
        broker: ``embedded``, or an address such as ``mqtt://host:1883``.
        host: address that the embedded broker listens on.
        port: port of the embedded broker; 0: a free one.
        should_stop: asked while the embedded broker starts.

    Raises:
        ConfigError: the address is malformed, or iotcore is not installed.
        NetworkError: the port is in use, or the embedded broker does not start.
        KeyboardInterrupt: it was told to stop while the embedded broker started.
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
    wait_for_start(embedded, should_stop)
    _LOG.info("embedded broker on %s:%d", host, chosen)
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


def wait_for_start(embedded: Startable, should_stop: Callable[[], bool]) -> None:
    """Start an embedded broker and wait as long as its process lives: a busy board may take minutes.

    Raises:
        NetworkError: its process has ended, or could not be started.
        KeyboardInterrupt: it was told to stop.
    """
    began = said = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="broker") as executor:
        starting = executor.submit(embedded.start, math.inf)
        while not concurrent.futures.wait([starting], _LOOK_S).done:
            if should_stop():
                while not concurrent.futures.wait([starting], _LOOK_S).done:
                    embedded.stop()  # ends the start too, once there is a process
                raise KeyboardInterrupt
            if time.monotonic() - said >= _SAY_S:
                said = time.monotonic()
                _LOG.warning("the embedded broker is still starting, for %.0f s now; waiting for it", said - began)
    try:
        starting.result()
    except Exception as error:
        raise NetworkError(
            f"the embedded broker does not start: {cause_of(error)}",
            "choose another --mqtt-port; or run a broker of your own, and give --broker mqtt://host:1883",
        ) from error
