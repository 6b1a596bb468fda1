"""MQTT topics: one per fleet, device and kind of message."""

from __future__ import annotations

import re
from typing import Literal

from edge_runtime.errors import ProtocolError

_TOPIC_ROOT = "covey/v1"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
Kind = Literal["birth", "state", "profile", "plan", "report", "report/ack", "probe"]


def topic_for(fleet: str, device: str, kind: Kind) -> str:
    """Return the topic of one kind of message; ``device`` may be ``+`` in a subscription.

    Raises:
        ProtocolError: a name has characters that are not allowed in topics or file names.
    """
    for name in (fleet, device):
        if name != "+" and not _NAME.fullmatch(name):
            raise ProtocolError(
                f"{name!r} cannot be the name of a fleet or a device",
                "use up to 63 letters, digits, '.', '_' and '-', beginning with a letter or digit",
            )
    return f"{_TOPIC_ROOT}/{fleet}/{device}/{kind}"


def device_of(topic_name: str) -> str:
    """Return the device in a topic."""
    return topic_name.split("/")[3]
