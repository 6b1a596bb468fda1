"""The broker's address and TLS files, read from the configuration and checked."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

import msgspec

from edge_runtime.errors import ConfigError

_PORTS = {"mqtt": 1883, "mqtts": 8883}


class BrokerAddress(msgspec.Struct, frozen=True):
    """Where a broker is: from ``mqtt://[user:password@]host[:port]`` or ``mqtts://…``."""

    host: str
    port: int
    tls: bool
    username: str | None
    password: str | None


def parse_broker(url: str) -> BrokerAddress:
    """Read a broker's address.

    Raises:
        ConfigError: another scheme, no host, a bad port.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"broker {url!r}: {error}", "write mqtt://host:1883, an IPv6 address in [ ]") from error
    if parts.scheme not in _PORTS or not host:
        raise ConfigError(f"broker {url!r} is not an address", "write mqtt://host:1883, or mqtts://host:8883 for TLS")
    return BrokerAddress(
        host=host,
        port=_PORTS[parts.scheme] if port is None else port,
        tls=parts.scheme == "mqtts",
        username=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
    )


class TlsFiles(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Files for TLS (PEM): the authority that signed the broker, and this member's own certificate and key."""

    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
