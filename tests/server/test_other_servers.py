"""Two servers on one fleet: the younger gives way and both name the other; dead ones and other fleets do not matter."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest
from fleets import wait_for
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.network.in_process import Hub
from edge_runtime.network.transport import Connected, Message
from edge_runtime.protocol.messages import decode_message, encode_message
from edge_runtime.protocol.side_messages import ServerPresent
from edge_runtime.protocol.topics import servers_topic
from server.errors import JobError
from server.fleet.other_servers import Myself, OtherServers, gives_way

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edge_runtime.network.in_process import InProcessTransport

ENOUGH_S = 60.0
AGES = st.floats(0, 1e6)


def present(server_id: str, age_s: float, *, asks: bool) -> bytes:
    message = ServerPresent(server_id=server_id, hostname=f"host-{server_id}", age_s=age_s, asks=asks)
    return encode_message(message)


@contextlib.contextmanager
def server(
    hub: Hub, server_id: str, *, answer_s: float = 0.01, fleet: str = "lab", age_s: float = 0.0
) -> Iterator[tuple[OtherServers, InProcessTransport]]:
    """Start a server of a fleet; ``age_s``: how long it has run before."""
    transport, first = hub.join(), iter([-age_s])
    made = OtherServers(Myself(fleet, server_id, f"host-{server_id}"), transport, lambda: next(first, 0.0))
    try:
        made.begin(answer_s)
        yield made, transport
    finally:
        made.close()


def test_a_second_server_gives_way_at_once_and_both_are_named(caplog: pytest.LogCaptureFixture) -> None:
    hub = Hub()
    with server(hub, "old", age_s=100.0) as (old, _):
        with pytest.raises(JobError) as raised, server(hub, "new", answer_s=ENOUGH_S):
            pass
        assert "host-new" in raised.value.what
        assert "host-old, which has run for 100 s" in raised.value.what
        assert "--fleet" in raised.value.hint
        old.check()
    assert "host-old and another one on host-new, which is the younger one" in caplog.text


def test_a_server_that_died_and_one_of_another_fleet_do_not_matter() -> None:
    hub = Hub()
    with server(hub, "dead"):
        pass
    with server(hub, "other", fleet="kitchen"), server(hub, "new") as (new, _):
        new.check()


def test_two_that_start_at_once_leave_exactly_one() -> None:
    """Neither has waited yet when the other's question comes."""
    hub = Hub()
    transports = {name: hub.join() for name in "ab"}
    made = {name: OtherServers(Myself("lab", name, name), transports[name], lambda: 0.0) for name in "ab"}
    ended = []
    for name in "ab":
        try:
            made[name].begin(0.05)
        except JobError:
            ended.append(name)
    with contextlib.suppress(JobError):
        wait_for(lambda: made["a"].check() or ended, "an end")
    assert ended == ["b"]
    made["a"].check()
    for one in made.values():
        one.close()


def test_one_that_runs_gives_way_to_an_older_one_that_comes_back() -> None:
    """A broker was divided, and is one again: who has run longer stays."""
    hub = Hub()
    with server(hub, "z", age_s=10.0) as (made, transport):
        listener = hub.join()
        listener.subscribe(servers_topic("lab"))
        transport.deliver(Connected())
        assert isinstance(listener.receive(ENOUGH_S), Connected)
        asked = listener.receive(ENOUGH_S)
        assert isinstance(asked, Message)
        assert decode_message(asked.payload, ServerPresent).asks
        hub.publish(servers_topic("lab"), present("younger", 1.0, asks=False), retain=False)
        hub.publish(servers_topic("lab"), present("older", 99.0, asks=False), retain=False)

        found = wait_for(lambda: made._found, "end of the younger server")
        assert "host-older" in found.what
        with pytest.raises(JobError):
            made.check()


def test_who_has_lost_its_ledger_answers_nobody_and_asks_once_it_has_it_again() -> None:
    hub, is_lost = Hub(), True
    old = OtherServers(Myself("lab", "old", "host-old"), hub.join(), lambda: 0.0, is_lost=lambda: is_lost)
    old.begin(0.0)
    try:
        with server(hub, "new", answer_s=1.0) as (new, _):  # the standby, which has the ledger now
            new.check()
        listener = hub.join()
        listener.subscribe(servers_topic("lab"))
        is_lost = False
        said = wait_for(lambda: listener.receive(0.1), "question")
        while not isinstance(said, Message):
            said = wait_for(lambda: listener.receive(0.1), "question")
        assert decode_message(said.payload, ServerPresent).asks
        old.check()
    finally:
        old.close()


@pytest.mark.parametrize("payload", [b"", b"\x00", b"\x82\xa1v\x05\xa4type\xa6server", b"\x91" * 5000])
def test_what_is_no_such_message_is_passed_over(payload: bytes) -> None:
    hub = Hub()
    with server(hub, "a") as (made, transport):
        transport.deliver(Message(servers_topic("lab"), payload))
        listener = hub.join()
        listener.subscribe(servers_topic("lab"))
        transport.deliver(Message(servers_topic("lab"), present("b", 0.0, asks=True)))
        listener.receive(ENOUGH_S)
        answer = listener.receive(ENOUGH_S)
        assert isinstance(answer, Message)  # it still answers
        made.check()


@given(ids=st.lists(st.text(min_size=1, max_size=4), min_size=2, max_size=2, unique=True), ages=st.tuples(AGES, AGES))
def test_of_two_exactly_one_gives_way(ids: list[str], ages: tuple[float, float]) -> None:
    def other(index: int) -> ServerPresent:
        return ServerPresent(server_id=ids[index], hostname="h", age_s=ages[index], asks=False)

    assert gives_way(ids[0], ages[0], other(1)) != gives_way(ids[1], ages[1], other(0))
