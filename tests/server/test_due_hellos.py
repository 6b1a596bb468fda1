"""When the server says hello again to devices that have not heard it, while messages wait and when none does."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from edge_runtime.network.in_process import Hub
from edge_runtime.network.transport import Message
from edge_runtime.protocol.messages import decode_message, encode_message
from edge_runtime.protocol.presence import Hello
from edge_runtime.protocol.topics import hello_topic, topic_for
from server.compose import compose_coordinator
from server.evaluation import InlineEvaluator
from server.rounds.services import Services
from server.storage.ledger import Ledger
from server.storage.ledger_address import LEDGER_FILE
from server.swarm.answers import birth

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FLEET = "default"


class Served:
    """A coordinator whose broker retains announcements of an earlier epoch, and a clock that a test sets."""

    def __init__(self, ledger: Ledger) -> None:
        self.now = 1000.0
        self.hub = Hub()
        self._listener = self.hub.join()
        self._listener.subscribe(hello_topic(FLEET))
        no_evaluator: Any = InlineEvaluator(lambda _theta: pytest.fail("nothing is evaluated here"))
        no_uploads: Any = None
        services = Services(self.hub.join(), no_uploads, no_evaluator, lambda: self.now, "http://nowhere")
        self.coordinator = compose_coordinator(FLEET, ledger, services, lambda _event: None)
        self.coordinator.handle_next(0)  # the connection
        assert self.hellos() == 1

    def announce(self, *names: str, epoch: str = "of before") -> None:
        for name in names:
            own = encode_message(birth(name, epoch))
            self.hub.publish(topic_for(FLEET, name, "birth"), own, retain=False)

    def hellos(self) -> int:
        """Return how many hellos were said since the last call."""
        found = 0
        while (event := self._listener.receive(0)) is not None:
            if isinstance(event, Message):
                self.epoch = decode_message(event.payload, Hello).epoch
                found += 1
        return found


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with contextlib.closing(Ledger(tmp_path / LEDGER_FILE, durable=False)) as ledger:
        yield Served(ledger)


def test_while_messages_wait_no_hello_is_said_again(served: Served) -> None:
    """A broker that retains a large fleet sends all of it at once, and the answers to the hello come behind that."""
    names = [f"d{number}" for number in range(20)]
    served.announce(*names)
    served.announce(*names, epoch=served.epoch)
    while served.coordinator.handle_next(0):
        served.now += 1.0  # the clock is far from where it began, and 40 messages take less than a minute
    assert served.hellos() == 0


def test_who_has_not_answered_when_nothing_waits_gets_one(served: Served) -> None:
    served.announce("a", "b")
    served.announce("a", epoch=served.epoch)
    while served.coordinator.handle_next(0):
        pass
    assert served.hellos() == 1


def test_where_messages_always_wait_one_is_said_a_minute_after_it_became_due(served: Served) -> None:
    served.announce("a")
    served.coordinator.handle_next(0)
    served.announce(*["b"] * 10, epoch=served.epoch)
    served.now += 59.0
    served.coordinator.handle_next(0)
    assert served.hellos() == 0
    served.now += 2.0
    served.coordinator.handle_next(0)
    assert served.hellos() == 1
    for _ in range(5):
        served.coordinator.handle_next(0)
    assert served.hellos() == 0
