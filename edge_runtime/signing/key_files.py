"""Where a member's keys are, as configured. The library of signatures is loaded by those alone who have keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from pathlib import Path


class DeviceKeys(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[signing]`` of edge.toml: with it a device signs all that it says, and believes only its server.

    Attributes:
        key_file: the device's private P-256 key (PEM), readable by its owner only.
        server_key_file: the server's public key or certificate (PEM); two of each while the server's key changes.
    """

    key_file: str
    server_key_file: str


@dataclass(frozen=True)
class ServerKeys:
    """The server's private P-256 key (PEM), and the folder with a file ``NAME.pem`` of each device's public keys."""

    key_file: Path
    device_keys: Path
