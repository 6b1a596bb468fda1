"""MQTT topics: one per fleet, device and kind of message."""

from __future__ import annotations

import re
from typing import Literal

from edge_runtime.errors import ProtocolError
from edge_runtime.values import NAME_PATTERN

TOPIC_ROOT = "covey/v1"
_NAME = re.compile(NAME_PATTERN)
_LEVELS_BEFORE_DEVICE = 3
Kind = Literal[
    "birth",
    "state",
    "profile",
    "plan",
    "report",
    "report/ack",
    "probe",
    "log",
    "log/get",
    "release",
    "released",
    "predict",
    "predicted",
]

LISTENS: tuple[Kind, ...] = ("plan", "report/ack", "log/get", "release")
"""What every device subscribes to; one that answers the server's requests for predictions also to ``predict``."""


def topic_for(fleet: str, device: str, kind: Kind) -> str:
    """Return the topic of one kind of message; ``device`` may be ``+`` in a subscription.

    Raises:
        ProtocolError: a name has characters that are not allowed in topics or file names.
    """
    for name in (fleet, device):
        if name != "+":
            _check_name(name)
    return f"{TOPIC_ROOT}/{fleet}/{device}/{kind}"


def hello_topic(fleet: str) -> str:
    """Return the topic on which the server says that it is here.

    Raises:
        ProtocolError: see topic_for.
    """
    _check_name(fleet)
    return f"{TOPIC_ROOT}/{fleet}/hello"


def servers_topic(fleet: str) -> str:
    """Return the topic on which the servers of a fleet look for each other: there must be one.

    Raises:
        ProtocolError: see topic_for.
    """
    _check_name(fleet)
    return f"{TOPIC_ROOT}/{fleet}/servers"


def shared_filter(group: str, topic_filter: str) -> str:
    """Return the filter by which the members of a group subscribe: a broker hands each message to one of them."""
    return f"$share/{group}/{topic_filter}"


def device_of(topic_name: str) -> str:
    """Return the device in a topic.

    Raises:
        ProtocolError: the topic has no device, or one whose name is not allowed; anybody on the broker can publish.
    """
    levels = topic_name.split("/")
    if len(levels) <= _LEVELS_BEFORE_DEVICE:
        raise ProtocolError(f"the topic {topic_name!r} names no device", "publish on covey/v1/FLEET/DEVICE/KIND")
    name = levels[_LEVELS_BEFORE_DEVICE]
    _check_name(name)
    return name


def _check_name(name: str) -> None:
    if not _NAME.search(name):
        raise ProtocolError(
            f"{name!r} cannot be the name of a fleet or a device",
            "use up to 63 letters, digits, '.', '_' and '-', beginning with a letter or digit",
        )
