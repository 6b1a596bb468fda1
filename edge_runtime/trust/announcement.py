"""What a server announces of itself by mDNS (RFC 6762, DNS-SD): enough to be tried, and nothing that is believed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_runtime.errors import ConfigError
from edge_runtime.network.http_address import https_url

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SERVICE = "_covey._tcp.local."
_VERSION = b"1"
_MOST_HOSTS = 8
_MOST_BYTES = 200
"""Bytes of the text of hosts; one string of a TXT record has at most 255."""


@dataclass(frozen=True)
class Announcement:
    """One server that announces itself.

    Attributes:
        fleet: the fleet's name.
        authority_sha256: hash of the fleet's authority, in hexadecimal digits.
        hosts: names and addresses under which it may be reached, the best first.
        port: where devices join.
    """

    fleet: str
    authority_sha256: str
    hosts: Sequence[str]
    port: int

    @property
    def urls(self) -> list[str]:
        """Where it may be tried; hosts that cannot be any are left out."""
        found = []
        for host in dict.fromkeys(self.hosts):
            try:
                found.append(https_url(host, self.port))
            except ConfigError:
                continue
        return found[:_MOST_HOSTS]


def to_text(announcement: Announcement) -> dict[bytes, bytes]:
    """Return what is in the service's TXT record; hosts that do not fit are left out."""
    hosts = ""
    for host in announcement.hosts:
        longer = f"{hosts},{host}" if hosts else host
        if len(longer.encode()) <= _MOST_BYTES:
            hosts = longer
    return {
        b"v": _VERSION,
        b"fleet": announcement.fleet.encode(),
        b"ca": announcement.authority_sha256.encode(),
        b"hosts": hosts.encode(),
    }


def from_text(text: Mapping[bytes, bytes | None], addresses: Sequence[str], port: int | None) -> Announcement | None:
    """Return what a service announces; None: it is of another version, or of something else.

    Args:
        text: its TXT record; anybody in the network may have written it.
        addresses: its IP addresses.
        port: its port.
    """
    if text.get(b"v") != _VERSION or port is None or not 0 < port < 1 << 16:
        return None
    words = {key: (text.get(key) or b"")[:255].decode("ascii", "replace") for key in (b"fleet", b"ca", b"hosts")}
    hosts = [host for host in words[b"hosts"].split(",") if host]
    shown = "".join(char if char.isprintable() else "?" for char in words[b"fleet"])
    return Announcement(shown, words[b"ca"].lower(), [*hosts, *addresses], port)
