"""A broker that is stopped while it is asked forbids nothing; one that ends every connection at a topic does."""

from __future__ import annotations

import pytest
from stopping_broker import stopping_broker

from edge_runtime.network.access import ENDINGS, check_access
from edge_runtime.network.address import parse_broker
from edge_runtime.network.message_size import check_size

READS, WRITES = ["f/hello", "f/a/plan"], ["f/a/birth", "f/a/state"]


def kinds(port: int) -> list[tuple[str, str]]:
    """What is forbidden: words of the findings."""
    access = check_access(
        parse_broker(f"mqtt://127.0.0.1:{port}"), "a-check", None, reads=READS, writes=WRITES, timeout_s=60.0
    )
    return [(cause.kind, cause.finding.rsplit(" ", 1)[1]) for cause in access.causes]


@pytest.mark.parametrize("endings", range(ENDINGS))
def test_a_broker_that_ends_some_connections_forbids_nothing(endings: int) -> None:
    with stopping_broker(endings=endings) as broker:
        assert kinds(broker.port) == []
        assert broker.logins == endings + 2  # one for each version of MQTT


def test_a_broker_that_goes_in_the_middle_forbids_nothing() -> None:
    with stopping_broker(endings=1, goes=True) as broker:
        assert kinds(broker.port) == []


@pytest.mark.parametrize("topic", [*READS, *WRITES])
def test_a_topic_at_which_every_connection_ends_is_forbidden(topic: str) -> None:
    with stopping_broker(forbidden=topic) as broker:
        assert kinds(broker.port) == [("acl", topic)]


def test_a_message_is_too_large_only_where_every_connection_ends_at_it() -> None:
    def found(port: int) -> str | None:
        address = parse_broker(f"mqtt://127.0.0.1:{port}")
        cause = check_size(address, "server-check", None, topic="f/x/probe", size_bytes=5000, timeout_s=60.0)
        return None if cause is None else cause.kind

    for endings in range(ENDINGS):
        with stopping_broker(endings=endings) as broker:
            assert found(broker.port) is None
    with stopping_broker(endings=1, goes=True) as broker:
        assert found(broker.port) is None
    with stopping_broker(forbidden="probe") as broker:
        assert found(broker.port) == "oversize"
