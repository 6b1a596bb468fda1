"""The MQTT transport from two threads: paho's locks and Covey's never wait for each other."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING

import pytest

from edge_runtime.network.address import parse_broker
from edge_runtime.network.mqtt import MqttTransport, _Sent
from edge_runtime.network.transport import Message
from server.web.broker import open_broker

if TYPE_CHECKING:
    from collections.abc import Iterator

N_MESSAGES = 3000


@pytest.fixture
def _eager_threads() -> Iterator[None]:
    """Threads change places as often as they can, so that what may happen does."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("_eager_threads")
def test_a_sender_and_pahos_thread_do_not_block_each_other() -> None:
    """paho confirms messages with its own lock held, while others are being sent."""
    with open_broker("embedded", "127.0.0.1", 0) as address:
        url = parse_broker(f"mqtt://127.0.0.1:{address.port}")
        transport = MqttTransport(url, "covey-threads", connect_timeout_s=60.0)
        transport.subscribe("covey/echo")
        assert transport.deliver("covey/ready", b"x")

        def send() -> None:
            for _ in range(N_MESSAGES):
                transport.publish("covey/echo", b"x")

        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        came = 0
        while came < N_MESSAGES:
            event = transport.receive(60.0)
            assert event is not None, f"only {came} messages came back"
            came += isinstance(event, Message)
        sender.join(60.0)
        assert not sender.is_alive()
        transport.close()


def test_an_answer_may_come_before_its_number_is_known() -> None:
    sent: _Sent[str] = _Sent()
    assert sent.answer(7, is_refused=True) is None
    assert sent.enter(7, "a/b")
    assert not sent.enter(8, "c/d")
    assert sent.all() == ["c/d"]
    assert sent.answer(8) == "c/d"
    assert not sent.enter(None, "not sent")
    assert sent.all() == []
