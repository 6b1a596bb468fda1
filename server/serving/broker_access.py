"""What a server must be allowed to do on its broker; a broker drops what it forbids without a word."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_runtime.network.access import check_access
from edge_runtime.protocol.topics import hello_topic, servers_topic, topic_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_runtime.network.access import Access
    from edge_runtime.network.address import BrokerAddress, TlsFiles
    from edge_runtime.protocol.topics import Kind

_NOBODY = "covey-check"
"""Stands for a device in what the server tries to publish."""


def server_access(address: BrokerAddress, fleet: str, tls: TlsFiles | None) -> Access:
    """Log in beside the server, and ask whether it may subscribe and publish where it must.

    Args:
        address: the broker.
        fleet: name of the fleet.
        tls: the server's TLS files.

    Raises:
        ConfigError: the TLS files are wrong.
    """

    def topics(device: str, kinds: Sequence[Kind]) -> list[str]:
        return [topic_for(fleet, device, kind) for kind in kinds]

    return check_access(
        address,
        f"covey-server-{fleet}-check",
        tls,
        reads=[servers_topic(fleet), *topics("+", ("birth", "state", "profile", "report", "log"))],
        writes=[hello_topic(fleet), servers_topic(fleet), *topics(_NOBODY, ("plan", "report/ack", "log/get"))],
    )
