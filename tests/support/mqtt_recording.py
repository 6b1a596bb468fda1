"""Records what MQTT clients and a broker say to each other, and reads it strictly as MQTT 3.1.1 (OASIS, 2014)."""

from __future__ import annotations

import contextlib
import socket
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

TYPES = {
    1: "CONNECT", 2: "CONNACK", 3: "PUBLISH", 4: "PUBACK", 5: "PUBREC", 6: "PUBREL", 7: "PUBCOMP", 8: "SUBSCRIBE",
    9: "SUBACK", 10: "UNSUBSCRIBE", 11: "UNSUBACK", 12: "PINGREQ", 13: "PINGRESP", 14: "DISCONNECT",
}  # fmt: skip
_LENGTHS = {
    "CONNACK": 2,
    "PUBACK": 2,
    "PUBREC": 2,
    "PUBREL": 2,
    "PUBCOMP": 2,
    "UNSUBACK": 2,
    "PINGREQ": 0,
    "PINGRESP": 0,
    "DISCONNECT": 0,
}
"""Bytes of the packets that have no properties in 3.1.1, and may have some in MQTT 5."""
_FLAGS = {"PUBREL": 2, "SUBSCRIBE": 2, "UNSUBSCRIBE": 2}


class NotMqtt311Error(AssertionError):
    """The bytes are no packets of MQTT 3.1.1."""


@dataclass(frozen=True)
class Packet:
    """One control packet.

    Attributes:
        kind: its name in the standard.
        size: all its bytes.
        level: of the protocol, in a CONNECT.
        client_id: in a CONNECT.
        topics: the topic of a PUBLISH or of a will, the filters of a SUBSCRIBE.
        qos: of a PUBLISH or of a will, the largest of a SUBSCRIBE.
        payload: of a PUBLISH or of a will.
        retain: of a PUBLISH or of a will.
    """

    kind: str
    size: int
    level: int | None = None
    client_id: str | None = None
    topics: tuple[str, ...] = ()
    qos: int = 0
    payload: bytes = b""
    retain: bool = False


class _Reader:
    """Takes fields from the front of a packet."""

    def __init__(self, data: bytes) -> None:
        self.rest = data

    def take(self, count: int) -> bytes:
        if count > len(self.rest):
            raise NotMqtt311Error("a packet is shorter than its fields")
        taken, self.rest = self.rest[:count], self.rest[count:]
        return taken

    def number(self, count: int = 2) -> int:
        return int.from_bytes(self.take(count), "big")

    def field(self) -> bytes:
        return self.take(self.number())

    def text(self) -> str:
        try:
            found = self.field().decode()
        except UnicodeDecodeError as error:
            raise NotMqtt311Error("a text is no UTF-8") from error
        if "\0" in found:
            raise NotMqtt311Error("a text has a character of value 0")
        return found

    def end(self, kind: str) -> None:
        if self.rest:
            raise NotMqtt311Error(f"{len(self.rest)} bytes after the fields of a {kind}: properties of MQTT 5?")


def read_packets(stream: bytes) -> list[Packet]:
    """Return the packets of one direction of a connection; the last may be cut off, as a killed process leaves it.

    Raises:
        NotMqtt311Error: it is something else than MQTT 3.1.1.
    """
    found = []
    while stream:
        length = _length(stream)
        if length is None or len(stream) < sum(length):
            break
        head, body = length
        found.append(_packet(stream[0], stream[head : head + body], head + body))
        stream = stream[head + body :]
    return found


def _length(stream: bytes) -> tuple[int, int] | None:
    """Return the bytes of a packet's fixed header and of the rest; None: the header is cut off."""
    value = 0
    for place in range(4):
        if len(stream) < place + 2:
            return None
        byte = stream[place + 1]
        value |= (byte & 127) << (7 * place)
        if byte < 128:
            return place + 2, value
    raise NotMqtt311Error("a length has more than four bytes")


def _packet(first: int, body: bytes, size: int) -> Packet:  # noqa: C901 a case for each kind
    kind, flags, reader = TYPES.get(first >> 4), first & 15, _Reader(body)
    if kind is None:
        raise NotMqtt311Error(f"a packet of type {first >> 4}: AUTH is of MQTT 5")
    if kind != "PUBLISH" and flags != _FLAGS.get(kind, 0):
        raise NotMqtt311Error(f"a {kind} with flags {flags}")
    if kind == "CONNECT":
        return _connect(reader, size)
    if kind == "PUBLISH":
        qos, retain, topic = flags >> 1 & 3, bool(flags & 1), reader.text()
        if qos == 3 or {"+", "#"} & set(topic):
            raise NotMqtt311Error(f"a PUBLISH of QoS {qos} on {topic!r}")
        if qos and reader.number() == 0:
            raise NotMqtt311Error("a packet with number 0")
        return Packet(kind, size, topics=(topic,), qos=qos, payload=reader.rest, retain=retain)
    if kind in ("SUBSCRIBE", "UNSUBSCRIBE"):
        return _subscribe(kind, reader, size)
    if kind == "SUBACK":
        reader.number()
        if not set(reader.rest) <= {0, 1, 2, 128}:
            raise NotMqtt311Error("a SUBACK with a reason code of MQTT 5")
        return Packet(kind, size)
    if len(body) != _LENGTHS[kind]:
        raise NotMqtt311Error(f"a {kind} of {len(body)} bytes instead of {_LENGTHS[kind]}")
    return Packet(kind, size)


def _connect(reader: _Reader, size: int) -> Packet:
    name, level, flags = reader.text(), reader.number(1), reader.number(1)
    if (name, level) != ("MQTT", 4):
        return Packet("CONNECT", size, level=level, client_id=_client_of(reader) if level == 5 else None)
    if flags & 1:
        raise NotMqtt311Error("a CONNECT with the reserved flag")
    reader.number()  # keep alive
    client_id, topics, payload = reader.text(), (), b""
    if flags & 4:
        topics, payload = (reader.text(),), reader.field()  # type: ignore[assignment]
    for flag in (128, 64):
        if flags & flag:
            reader.field()
    reader.end("CONNECT")
    return Packet("CONNECT", size, 4, client_id, topics, flags >> 3 & 3, payload, bool(flags & 32))


def _client_of(reader: _Reader) -> str:
    """Return the client id of a CONNECT of MQTT 5, which has properties before it."""
    reader.number()
    reader.take(reader.number(1))
    return reader.text()


def _subscribe(kind: str, reader: _Reader, size: int) -> Packet:
    reader.number()
    topics, qos = [], 0
    while reader.rest:
        topics.append(reader.text())
        if kind == "SUBSCRIBE":
            options = reader.number(1)
            if options > 2:
                raise NotMqtt311Error(f"a SUBSCRIBE with options {options:#x}, which are of MQTT 5")
            qos = max(qos, options)
    if not topics:
        raise NotMqtt311Error(f"a {kind} without a filter")
    return Packet(kind, size, topics=tuple(topics), qos=qos)


# -- the recorder ---------------------------------------------------------------------------------------------------


@dataclass
class Connection:
    """One connection through the recorder: what the client sent, and what the broker sent."""

    up: bytearray = field(default_factory=bytearray)
    down: bytearray = field(default_factory=bytearray)


class Recorder:
    """A TCP proxy before a broker that keeps every byte.

    Args:
        broker_port: the broker's port on 127.0.0.1.

    Attributes:
        port: where clients connect.
        connections: all so far.
    """

    def __init__(self, broker_port: int) -> None:
        self._broker_port = broker_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.connections: list[Connection] = []

    def accept(self) -> None:
        """Take connections until the recorder is closed."""
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    broker = socket.create_connection(("127.0.0.1", self._broker_port))
                except OSError:
                    client.close()
                    continue
                kept = Connection()
                self.connections.append(kept)
                for source, target, record in ((client, broker, kept.up), (broker, client, kept.down)):
                    threading.Thread(target=_pump, args=(source, target, record), daemon=True).start()

    def close(self) -> None:
        """Take no more connections; those that are open end with their members."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def _pump(source: socket.socket, target: socket.socket, record: bytearray) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            record += data
            target.sendall(data)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def recorded(broker_port: int) -> Iterator[Recorder]:
    """Record what goes through a port, to a broker, until the block ends."""
    recorder = Recorder(broker_port)
    thread = threading.Thread(target=recorder.accept, daemon=True)
    thread.start()
    try:
        yield recorder
    finally:
        recorder.close()
        thread.join(10)
