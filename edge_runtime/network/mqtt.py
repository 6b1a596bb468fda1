"""The MQTT transport: paho-mqtt with QoS 1, a persistent session, reconnects and TLS. MQTT 3.1.1 features only."""

from __future__ import annotations

import logging
import queue
import threading
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from edge_runtime.errors import ConfigError, NetworkError
from edge_runtime.network.address import BrokerAddress, TlsFiles
from edge_runtime.network.transport import Connected, Event, Message, Will

_LOG = logging.getLogger(__name__)
_QOS = 1
_KEEP_ALIVE_S = 20
_RECONNECT_MIN_S = 1
_RECONNECT_MAX_S = 60
_GOODBYE_S = 10.0


class MqttTransport:
    """A connection to a real broker; see Transport.

    Args:
        address: the broker.
        identity: client id of the session, the same after every restart, so that QoS 1 messages wait for it.
        will: published by the broker when this member vanishes.
        tls: files for TLS.
        connect_timeout_s: seconds that the first connection may take; later reconnects are tried without limit.

    Raises:
        NetworkError: no connection in time, or the broker refused it.
    """

    def __init__(
        self,
        address: BrokerAddress,
        identity: str,
        *,
        will: Will | None = None,
        tls: TlsFiles | None = None,
        connect_timeout_s: float = 60.0,
    ) -> None:
        self._address = address
        self._inbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._filters: list[str] = []
        self._connected = threading.Event()
        self._refusal = ""
        self._client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id=identity, protocol=mqtt.MQTTv311, clean_session=False
        )
        self._client.reconnect_delay_set(_RECONNECT_MIN_S, _RECONNECT_MAX_S)
        if address.username is not None:
            self._client.username_pw_set(address.username, address.password)
        if address.tls:
            self._set_tls(tls or TlsFiles())
        if will is not None:
            self._client.will_set(will.topic, will.payload, qos=_QOS, retain=True)
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_message = self._on_message
        self._connect(connect_timeout_s)

    def _set_tls(self, files: TlsFiles) -> None:
        try:
            self._client.tls_set(ca_certs=files.ca_file, certfile=files.cert_file, keyfile=files.key_file)
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot use the TLS files: {error}", "check ca_file, cert_file and key_file") from error

    def _connect(self, timeout_s: float) -> None:
        self._client.connect_async(self._address.host, self._address.port, keepalive=_KEEP_ALIVE_S)
        self._client.loop_start()
        if self._connected.wait(timeout_s):
            return
        self._client.loop_stop()
        where = f"{self._address.host}:{self._address.port}"
        raise NetworkError(
            f"no connection to the broker at {where} in {timeout_s:g} s"
            + (f": {self._refusal}" if self._refusal else ""),
            "check its address, that it runs, and that a firewall lets this machine in",
        )

    def _on_connect(self, client: mqtt.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:  # noqa: ANN401
        if reason.is_failure:
            self._refusal = str(reason)
            _LOG.warning("the broker refused the connection: %s", reason)
            return
        for topic_filter in self._filters:
            client.subscribe(topic_filter, qos=_QOS)
        self._inbox.put(Connected())
        self._connected.set()

    def _on_disconnect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:  # noqa: ANN401
        if reason.is_failure:
            _LOG.warning("connection to the broker lost (%s); trying again", reason)

    def _on_message(self, _client: Any, _data: Any, message: mqtt.MQTTMessage) -> None:  # noqa: ANN401
        self._inbox.put(Message(message.topic, bytes(message.payload)))

    @property
    def broker_host(self) -> str:
        """See Transport."""
        return self._address.host

    def subscribe(self, topic_filter: str) -> None:
        """See Transport."""
        self._filters.append(topic_filter)
        self._client.subscribe(topic_filter, qos=_QOS)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """See Transport."""
        self._client.publish(topic, payload, qos=_QOS, retain=retain)

    def receive(self, timeout_s: float | None) -> Event | None:
        """See Transport."""
        try:
            return self._inbox.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def deliver(self, topic: str, payload: bytes) -> bool:
        """Publish a retained message and wait briefly; return whether the broker has acknowledged it."""
        info = self._client.publish(topic, payload, qos=_QOS, retain=True)
        try:
            info.wait_for_publish(_GOODBYE_S)
            return info.is_published()
        except RuntimeError as error:
            _LOG.debug("could not publish on %s: %s", topic, error)
            return False

    def close(self, last: tuple[str, bytes] | None = None) -> None:
        """Send what waits (and ``last``, retained), then leave; the broker does not publish the will."""
        if last is not None and not self.deliver(*last):  # not connected: the will speaks for us
            _LOG.info("could not say goodbye")
        self._client.disconnect()
        self._client.loop_stop()
