"""What a server must be allowed to do on its broker; a broker drops what it forbids without a word."""

from __future__ import annotations

import logging
import secrets
from typing import TYPE_CHECKING

from edge_runtime.network.access import check_access
from edge_runtime.network.echo import comes_back, hands_to_groups
from edge_runtime.network.message_size import check_size
from edge_runtime.protocol.topics import hello_topic, servers_topic, shared_filter, topic_for
from server.job.largest_message import largest_message_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_runtime.network.access import Access
    from edge_runtime.network.address import BrokerAddress, TlsFiles
    from edge_runtime.protocol.topics import Kind
    from server.job.job import Job

_LOG = logging.getLogger(__name__)
_READS: Sequence[Kind] = ("birth", "state", "profile", "report", "log", "released", "predicted")
_WRITES: Sequence[Kind] = ("plan", "report/ack", "log/get", "release", "predict")
_GROUP_S = 5.0
"""Seconds for login, subscription and message, each, when a broker is asked whether it hands messages to groups."""
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
        reads=[servers_topic(fleet), *topics("+", _READS)],
        writes=[hello_topic(fleet), servers_topic(fleet), *topics(_NOBODY, _WRITES)],
    )


def hears_itself(address: BrokerAddress, fleet: str, tls: TlsFiles | None) -> bool:
    """Return whether a message of the server comes back to it, on the topic where servers look for each other.

    Raises:
        ConfigError: the TLS files are wrong.
    """
    return comes_back(address, f"covey-server-{fleet}-echo", tls, servers_topic(fleet))


def hands_reports_to_groups(address: BrokerAddress, fleet: str, tls: TlsFiles | None) -> bool | None:
    """Return whether the broker hands reports to a group of subscribers; None: it could not be asked.

    It is asked with an empty report of no device, and with a group of one member, which nobody else is in.

    Raises:
        ConfigError: the TLS files are wrong.
    """
    identity = f"covey-server-{fleet}-group-{secrets.token_hex(8)}"
    topic, topic_filter = topic_for(fleet, _NOBODY, "report"), shared_filter(identity, topic_for(fleet, "+", "report"))
    return hands_to_groups(address, identity, tls, topic, topic_filter, _GROUP_S)


def require_size(address: BrokerAddress, fleet: str, tls: TlsFiles | None, job: Job) -> None:
    """Try the largest message of a job on the probe topic of no device, before its first round.

    Raises:
        ConfigError: the TLS files are wrong.
        NetworkError: the broker does not take it; names the size, and the broker's limit if that is known.
    """
    topic, identity = topic_for(fleet, _NOBODY, "probe"), f"covey-server-{fleet}-check"
    cause = check_size(address, identity, tls, topic=topic, size_bytes=largest_message_bytes(job))
    if cause is not None and cause.kind == "oversize":
        raise cause.error(f"the messages of job {job.name} are too large: ")
    if cause is not None:
        _LOG.warning("%s", cause)
