"""The embedded broker on a busy machine: it is waited for as long as its process lives, and no longer."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import iotcore.broker
import pytest
from fleets import free_port, wait_for

from edge_runtime.errors import NetworkError
from server.web import broker
from server.web.broker import open_broker, wait_for_start

if TYPE_CHECKING:
    from collections.abc import Iterator


class Busy:
    """A clock of a machine on which every look takes a minute; it sleeps as the real one."""

    sleep = staticmethod(time.sleep)

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 60.0
        return self.now


@pytest.fixture
def starting(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Every broker process is stopped (SIGSTOP) as it is made; the list has their ids."""
    made: list[int] = []
    popen = iotcore.broker.subprocess.Popen

    def stopped(*arguments: Any, **more: Any) -> Any:
        process = popen(*arguments, **more)
        os.kill(process.pid, signal.SIGSTOP)
        made.append(process.pid)
        return process

    monkeypatch.setattr(iotcore.broker, "time", Busy())
    monkeypatch.setattr(broker, "_LOOK_S", 0.02)
    monkeypatch.setattr(broker, "_SAY_S", 0.0)
    monkeypatch.setattr(
        iotcore.broker,
        "subprocess",
        type("Subprocess", (), vars(iotcore.broker.subprocess) | {"Popen": staticmethod(stopped)}),
    )
    yield made
    for pid in made:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def lines(caplog: pytest.LogCaptureFixture) -> int:
    return caplog.text.count("still starting")


def test_a_broker_that_is_slow_to_start_is_waited_for(starting: list[int], caplog: pytest.LogCaptureFixture) -> None:
    def let_it_start() -> None:
        wait_for(lambda: lines(caplog) >= 5, "lines about the broker")  # minutes of its own clock
        os.kill(starting[0], signal.SIGCONT)

    helper = threading.Thread(target=let_it_start)
    helper.start()
    with open_broker("embedded", "127.0.0.1", 0) as address, socket.create_connection((address.host, address.port), 5):
        helper.join()
    assert len(starting) == 1


def test_a_broker_that_ends_while_it_starts_is_said(starting: list[int], caplog: pytest.LogCaptureFixture) -> None:
    def end_it() -> None:
        wait_for(lambda: lines(caplog) >= 2, "lines about the broker")
        os.kill(starting[0], signal.SIGKILL)

    helper = threading.Thread(target=end_it)
    helper.start()
    with (
        pytest.raises(NetworkError, match="does not start: broker process exited") as caught,
        open_broker("embedded", "127.0.0.1", free_port()),
    ):
        pass
    helper.join()
    assert "--broker mqtt://" in caught.value.hint


def test_a_server_can_be_stopped_while_its_broker_starts(starting: list[int], caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(KeyboardInterrupt), open_broker("embedded", "127.0.0.1", 0, lambda: lines(caplog) >= 2):
        pass
    with pytest.raises(ProcessLookupError):
        os.kill(starting[0], 0)


def test_a_broker_that_cannot_start_is_said() -> None:
    class Broken:
        def start(self, timeout: float) -> object:
            assert timeout == float("inf")
            raise OSError(98, "Address already in use")

        def stop(self) -> None:
            raise AssertionError

    with pytest.raises(NetworkError, match="Address already in use"):
        wait_for_start(Broken(), lambda: False)
