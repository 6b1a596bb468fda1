"""The envelope of signed messages: who speaks on which topic, what exactly is signed, and how it is encoded.

Nothing here signs or checks; see the room signing. The encoding is canonical: one envelope has exactly one encoding, so
that no byte of a message can be changed without its signature, or its form, being refused.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec

from edge_runtime.errors import ProtocolError, wall
from edge_runtime.protocol.message_base import ENVELOPE_BYTES
from edge_runtime.protocol.messages import MAX_PAYLOAD_BYTES
from edge_runtime.protocol.topics import TOPIC_ROOT, device_of, hello_topic, servers_topic
from edge_runtime.values import Name

SERVER = "@server"
"""The speaker that is the fleet's server; no device can have this name."""
ENVELOPE_VERSION: Literal[1] = 1
KEY_ID_BYTES = 8
SIGNATURE_BYTES = 64
LARGEST_SEQUENCE = 2**63 - 1
_DOMAIN = b"covey-signed-message-v1"
_FROM_DEVICE = frozenset({"birth", "state", "profile", "report", "log", "released", "predicted"})
_FROM_SERVER = frozenset({"plan", "report/ack", "log/get", "release", "predict"})
_NOT_SIGNED = frozenset({"probe"})
_HINT = "only the server and devices of this fleet, with signing switched on, may publish on its topics"


class Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="signed", tag_field="type", kw_only=True):
    """A signed message.

    Attributes:
        v: version of the envelope; the body has a version of its own.
        key_id: the first 8 bytes of the SHA-256 of the speaker's public key (SubjectPublicKeyInfo, DER).
        role: ``message``, or ``will`` for the last will, which is signed before the connection and sent by the broker.
        session: names the speaker's process: a device's boot id, or a random text of the server.
        answers: the session of the listener that the speaker knows; None: it knows none, or speaks to all.
        sequence: of the speaker, ascending over all its topics, connections and restarts; never used twice.
        signature: ECDSA with P-256 and SHA-256 over signed_bytes; r and s, 32 bytes each, big-endian.
        body: the message itself, as it would be sent without signatures.
    """

    v: Literal[1] = ENVELOPE_VERSION
    key_id: Annotated[bytes, msgspec.Meta(min_length=KEY_ID_BYTES, max_length=KEY_ID_BYTES)]
    role: Literal["message", "will"]
    session: Name
    answers: Name | None
    sequence: Annotated[int, msgspec.Meta(ge=0, le=LARGEST_SEQUENCE)]
    signature: Annotated[bytes, msgspec.Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]
    body: bytes


class UnsignedError(ProtocolError):
    """A message of Covey that has no signature."""


@dataclass(frozen=True)
class Route:
    """Who speaks and who listens on a topic.

    Attributes:
        speaker: the name of a device, or SERVER.
        listener: the name of a device, or SERVER; None: all devices.
        kind: the last levels of the topic, for example ``report/ack``.
    """

    speaker: str
    listener: str | None
    kind: str


def route_of(fleet: str, topic: str) -> Route | None:
    """Return who speaks and who listens on a topic; None: its messages are not signed.

    Raises:
        ProtocolError: the topic is not one of the fleet's, or names no device that could exist.
    """
    if topic == hello_topic(fleet):
        return Route(SERVER, None, "hello")
    if topic == servers_topic(fleet):
        return None
    levels = topic.split("/", 4)
    if len(levels) < 5 or "/".join(levels[:3]) != f"{TOPIC_ROOT}/{fleet}":  # root, fleet, device, kind
        raise ProtocolError(f"{topic!r} is no topic of the fleet {fleet}", _HINT)
    device, kind = device_of(topic), levels[4]
    if kind in _FROM_DEVICE:
        return Route(device, SERVER, kind)
    if kind in _FROM_SERVER:
        return Route(SERVER, device, kind)
    if kind in _NOT_SIGNED:
        return None
    raise ProtocolError(f"{topic!r} ends with no kind of message", _HINT)


def signed_bytes(fleet: str, topic: str, envelope: Envelope) -> bytes:
    """Return the bytes that an envelope's signature is over: each part with its length before it.

    The parts are a tag of this use, the fleet, the topic, the key id, role, session, answers (empty for None), the
    sequence (8 bytes, big-endian) and the body.
    """
    parts = (
        _DOMAIN,
        fleet.encode(),
        topic.encode(),
        envelope.key_id,
        envelope.role.encode(),
        envelope.session.encode(),
        (envelope.answers or "").encode(),
        struct.pack(">Q", envelope.sequence),
        envelope.body,
    )
    return b"".join(struct.pack(">I", len(part)) + part for part in parts)


def encode_envelope(envelope: Envelope) -> bytes:
    """Return an envelope's bytes: at most ENVELOPE_BYTES more than its body.

    Raises:
        ProtocolError: it is larger than MAX_PAYLOAD_BYTES.
    """
    payload = msgspec.msgpack.encode(envelope)
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise ProtocolError(
            f"a signed message of {len(payload)} bytes is over the limit of {MAX_PAYLOAD_BYTES}",
            f"send bodies of at most {MAX_PAYLOAD_BYTES - ENVELOPE_BYTES} bytes",
        )
    return payload


def decode_envelope(payload: bytes) -> Envelope:
    """Read an envelope; its signature is not checked.

    Raises:
        UnsignedError: it is a message without an envelope.
        ProtocolError: it is too large, no envelope, of another version, or not in the canonical encoding.
    """
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise ProtocolError(f"a message of {len(payload)} bytes is over the limit of {MAX_PAYLOAD_BYTES}", _HINT)
    with wall(lambda cause: ProtocolError(f"a signed message cannot be read: {cause}", _HINT)):
        header = msgspec.msgpack.decode(payload, type=_Header)
    if header.type != "signed":
        raise UnsignedError(f"a message of type {header.type[:40]!r} has no signature", _HINT)
    with wall(lambda cause: ProtocolError(f"a signed message is not valid: {cause}", _HINT)):
        envelope = msgspec.msgpack.decode(payload, type=Envelope)
        is_canonical = msgspec.msgpack.encode(envelope) == payload
    if not is_canonical:
        raise ProtocolError("a signed message is not in its canonical encoding", _HINT)
    return envelope


class _Header(msgspec.Struct):
    type: str
