"""Encodes and decodes messages between the server and a device. MessagePack on the wire, MQTT 3.1.1 features only.

The messages are in presence.py, plans.py, reports.py, predictions.py and side_messages.py. Each carries the protocol's
version ``v`` and its tag ``type``. Payloads stay under 128 KB; large data (bundles, adapters, long logs) goes over HTTP
by sha256.
The tests hold golden encodings of these structs: a change that alters them needs a new version.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from edge_runtime.errors import ProtocolError
from edge_runtime.files.versioned import VersionedFormat
from edge_runtime.protocol.message_base import ENVELOPE_BYTES, VERSION
from edge_runtime.protocol.plans import Plan
from edge_runtime.protocol.predictions import Predict, Predicted
from edge_runtime.protocol.presence import Birth, DeviceState, Hello, ProfileMessage
from edge_runtime.protocol.reports import DeviceReport, Report, ReportAck
from edge_runtime.protocol.side_messages import LogLines, LogRequest, Release, Released, ServerPresent, TooOld

PROTOCOL_VERSION = VERSION
MAX_PAYLOAD_BYTES = 128 * 1024
"""Bytes of a payload as it travels, a signature's envelope included."""
LARGEST_MESSAGE_BYTES = MAX_PAYLOAD_BYTES - ENVELOPE_BYTES
"""Bytes of a message without its envelope."""

_SideMessage = LogRequest | LogLines | ServerPresent | Release | Released | TooOld | Predict | Predicted
AnyMessage = Hello | Birth | DeviceState | ProfileMessage | Plan | DeviceReport | ReportAck | _SideMessage

MessageT = TypeVar("MessageT")

_SAME_VERSION = "install the same version of Covey on the devices and on the server"
_FORMAT = VersionedFormat(
    "a message",
    PROTOCOL_VERSION,
    msgspec.msgpack.decode,
    ProtocolError,
    hint=_SAME_VERSION,
    newer_hint=_SAME_VERSION,
    field_name="protocol version",
)


def encode_message(message: AnyMessage) -> bytes:
    """Return a message's bytes.

    Raises:
        ProtocolError: it is larger than LARGEST_MESSAGE_BYTES.
    """
    payload = msgspec.msgpack.encode(message)
    if len(payload) > LARGEST_MESSAGE_BYTES:
        raise ProtocolError(
            f"a {type(message).__name__} of {len(payload)} bytes is over the limit of {LARGEST_MESSAGE_BYTES}",
            "lower steps or the number of perturbations in the job",
        )
    return payload


def decode_message(payload: bytes, expected: type[MessageT]) -> MessageT:
    """Read a message of one type.

    Raises:
        ProtocolError: not MessagePack, another version, another type, a wrong or missing field, too large.
    """
    message: MessageT = _decode(payload, expected)
    return message


def decode_plan(payload: bytes) -> Plan:
    """Read a plan of any kind; see decode_message."""
    plan: Plan = _decode(payload, Plan)
    return plan


def decode_plan_or_refusal(payload: bytes) -> Plan | TooOld:
    """Read what the server publishes on a device's plan topic; see decode_message."""
    found: Plan | TooOld = _decode(payload, Plan | TooOld)
    return found


def decode_report(payload: bytes) -> Report:
    """Read the report of a trained round; see decode_message."""
    report: Report = _decode(payload, Report)
    return report


def decode_device_report(payload: bytes) -> DeviceReport:
    """Read what a device publishes on its report topic; see decode_message."""
    report: DeviceReport = _decode(payload, DeviceReport)
    return report


def _decode(payload: bytes, expected: Any) -> Any:  # noqa: ANN401 a type or a union of types, which mypy cannot name
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise ProtocolError(
            f"a message of {len(payload)} bytes is over the limit of {MAX_PAYLOAD_BYTES}", _SAME_VERSION
        )
    return _FORMAT.read(payload, expected)
