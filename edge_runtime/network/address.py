"""The broker's address and TLS files, read from the configuration and checked."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit

import msgspec

from edge_runtime.errors import ConfigError
from edge_runtime.network.cause import Place

_PORTS = {"mqtt": 1883, "mqtts": 8883}
_ESCAPES = "in user and password write @ : / # % ? as %40 %3A %2F %23 %25 %3F"


class BrokerAddress(msgspec.Struct, frozen=True):
    """Where a broker is: from ``mqtt://[user:password@]host[:port][,host[:port]…]`` or ``mqtts://…``.

    Attributes:
        others: further addresses of the same broker, the nodes of a cluster; with the same user and password.
        in_order: whether a member tries them in this order; else each draws its own.
    """

    host: str
    port: int
    tls: bool
    username: str | None
    password: str | None
    others: tuple[BrokerAddress, ...] = ()
    in_order: bool = False

    def nodes(self) -> tuple[BrokerAddress, ...]:
        """Return every address, each for itself."""
        return (msgspec.structs.replace(self, others=()), *self.others)

    def begun_at(self, number: int) -> BrokerAddress:
        """Return the same nodes in a fixed order that begins at one of them, so that several connections spread."""
        nodes = self.nodes()
        first, *others = nodes[number % len(nodes) :] + nodes[: number % len(nodes)]
        return msgspec.structs.replace(first, others=tuple(others), in_order=True)

    def place(self, tls: TlsFiles | None) -> Place:
        """Return the broker as the other end of a connection, for causes."""
        own = None if tls is None or not self.tls else tls.cert_file
        return Place("broker", self.host, self.port, own)


def parse_broker(url: str) -> BrokerAddress:
    """Read a broker's address, or several of a cluster's nodes, with a comma between them.

    Raises:
        ConfigError: another scheme, no host, a bad port; an address is there twice.
    """
    first, *others = (_parse_node(node) for node in _node_urls(url))
    nodes = [(node.host, node.port) for node in (first, *others)]
    for host, port in nodes:
        if nodes.count((host, port)) > 1:
            raise ConfigError(
                f"broker {without_password(url)!r} names {host}:{port} twice",
                "write each node of the cluster once: mqtt://a:1883,b:1883,c:1883",
            )
    return msgspec.structs.replace(first, others=tuple(others))


def _node_urls(url: str) -> list[str]:
    """Return the address of each node, with the scheme and the user of all."""
    scheme, separator, rest = url.partition("://")
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    user, at, hosts = authority.rpartition("@")
    if "," not in hosts:
        return [url]
    tail = rest[len(authority) :]
    return [f"{scheme}{separator}{user}{at}{host}{tail}" for host in hosts.split(",")]


def _parse_node(url: str) -> BrokerAddress:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:  # its text may quote a piece of the password
        host = port = None
        parts = urlsplit("")
    if parts.scheme not in _PORTS or not host or port == 0 or " " in host:
        raise ConfigError(
            f"broker {without_password(url)!r} is not an address",
            f"write mqtt://host:1883, or mqtts://host:8883 for TLS; an IPv6 address in [ ]; the nodes of a cluster as "
            f"mqtt://a:1883,b:1883; {_ESCAPES}",
        )
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ConfigError(
            f"broker {without_password(url)!r} has more after the port than an address has",
            f"write mqtt://user:password@host:1883; {_ESCAPES}",
        )
    try:
        host.encode("idna")
    except UnicodeError as error:
        raise ConfigError(
            f"broker {without_password(url)!r}: {host!r} cannot be the name of a machine ({error})",
            "correct the name, or write the IP address",
        ) from error
    return BrokerAddress(
        host=host,
        port=_PORTS[parts.scheme] if port is None else port,
        tls=parts.scheme == "mqtts",
        username=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
    )


def without_password(url: str) -> str:
    """Return an address for messages: what stands between user and host is hidden."""
    scheme, separator, rest = url.partition("://")
    secrets, at, host = rest.rpartition("@")
    user = secrets.partition(":")[0]
    return f"{scheme}{separator}{user}{':…' if ':' in secrets else ''}{at}{host}"


class TlsFiles(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Files for TLS (PEM): the authority that signed the broker, and this member's own certificate and key."""

    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
