"""Live logs: sent only when asked, limited, after a crash, and kept by the server; over the hub with a real agent."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
from bench import Bench, bench_of, sync
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.agent.agent import Agent
from edge_runtime.agent.kept_log import RUNNING_FILE, keeping_log
from edge_runtime.agent.log_sender import BURST_LINES, LINES_PER_S, LogSender
from edge_runtime.errors import ProtocolError
from edge_runtime.network.in_process import InProcessTransport
from edge_runtime.network.transport import Message
from edge_runtime.protocol.messages import decode_message, encode_message
from edge_runtime.protocol.presence import Hello
from edge_runtime.protocol.side_messages import LONGEST_LINE, MOST_LINES, LogLine, LogLines, LogRequest
from edge_runtime.protocol.topics import hello_topic
from server.fleet.device_logs import KEPT_DEVICES, KEPT_LINES, DeviceLogs, request_log

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle


@pytest.fixture
def bench(tmp_path: Path, tiny_bundle: Bundle) -> Iterator[Bench]:
    with bench_of(tmp_path, tiny_bundle) as made:
        yield made


class Lines:
    """A log that the test writes, and the clock and messages of its sender."""

    def __init__(self, *, before_crash: int = 0) -> None:
        self.written: list[LogLine] = []
        self.now = 100.0
        self.sent: list[LogLines] = []
        self.write(before_crash)
        self.before_crash, self.written = self.written, []
        self.sender = LogSender("pi", "boot", self, self._publish, lambda: self.now)

    def write(self, count: int, text: str = "a line") -> None:
        first = self.written[-1].number + 1 if self.written else 0
        self.written += [LogLine(first + number, 1.0, "INFO", text) for number in range(count)]

    def lines(self) -> list[LogLine]:
        return self.written[-MOST_LINES:]

    def _publish(self, payload: bytes) -> None:
        assert len(payload) < 5000
        self.sent.append(decode_message(payload, LogLines))

    def turn(self, seconds: float = 0.0) -> list[int]:
        """Let time pass and the sender have its turn; return the numbers of the lines that it sent."""
        self.now += seconds
        self.sent.clear()
        self.sender.turn()
        return [line.number for message in self.sent for line in message.lines]


def test_nothing_is_sent_unasked_and_after_the_time_is_over() -> None:
    log = Lines()
    log.write(5)
    assert log.turn(10) == []
    log.sender.take(LogRequest(lines=2, follow_s=60))
    assert [line.number for line in log.sent[-1].lines] == [3, 4]
    log.write(2)
    assert log.turn(1) == [5, 6]
    assert log.turn(1) == []
    log.write(1)
    log.sender.take(LogRequest(lines=0, follow_s=60))  # renewed: nothing is lost or sent twice
    assert log.turn(50) == [7]
    log.write(1)
    assert log.turn(11) == []


def test_a_flood_is_limited_and_what_was_left_out_is_counted() -> None:
    log = Lines()
    log.sender.take(LogRequest(lines=0, follow_s=600))
    log.write(1000)
    sent = log.turn(1)
    assert sent == list(range(1000 - BURST_LINES, 1000))
    assert sum(message.dropped for message in log.sent) == 1000 - BURST_LINES
    log.write(100)
    sent = log.turn(2)
    assert len(sent) == 2 * LINES_PER_S
    assert sum(message.dropped for message in log.sent) == 100 - len(sent)


@given(st.lists(st.tuples(st.integers(0, 300), st.floats(0, 5)), max_size=40))
def test_every_line_is_sent_once_or_counted(steps: list[tuple[int, float]]) -> None:
    log = Lines()
    log.sender.take(LogRequest(lines=0, follow_s=600))
    sent: list[int] = []
    dropped, began = 0, log.now
    for count, seconds in [*steps, (0, BURST_LINES / LINES_PER_S)]:
        log.write(count)
        sent += log.turn(seconds)
        dropped += sum(message.dropped for message in log.sent)
    assert sent == sorted(set(sent))
    assert len(sent) + dropped == len(log.written)
    assert len(sent) <= BURST_LINES + LINES_PER_S * (log.now - began) + 1


def test_long_lines_go_in_several_messages() -> None:
    log = Lines()
    log.write(MOST_LINES, "ü" * LONGEST_LINE)
    log.sender.take(LogRequest(lines=MOST_LINES, follow_s=0))
    assert [line.number for message in log.sent for line in message.lines] == list(range(MOST_LINES))


def test_the_lines_before_a_crash_are_sent_once_an_epoch_and_not_for_ever() -> None:
    log = Lines(before_crash=3)
    for epoch in (None, "a", "a", "b", "c", "d", "e"):
        log.sender.announced(epoch)
    assert [(message.reason, len(message.lines)) for message in log.sent] == [("crash", 3)] * 3


# -- a real agent ---------------------------------------------------------------------------------------------------


def received(listener: InProcessTransport, logs: DeviceLogs) -> list[str]:
    texts = []
    while (event := listener.receive(0)) is not None:
        if isinstance(event, Message):
            texts += [new.line.text for new in logs.take("pi", decode_message(event.payload, LogLines))]
    return texts


def test_the_server_reads_and_follows_the_log_of_an_agent(bench: Bench) -> None:
    logs, server = DeviceLogs(), bench.hub.join()
    server.subscribe(bench.topic("log", "+"))
    with keeping_log(bench.store.root) as log:
        agent = Agent(bench.config, bench.store, bench.hub.join(), "boot", log=log)
        agent.serve_waiting()
        bench.hub.publish(bench.topic("plan"), encode_message(sync(bench, bench.initial())), retain=False)
        agent.serve_waiting()
        assert received(server, logs) == []
        request_log(server, "default", "pi", lines=500, follow_s=60.0)
        agent.serve_waiting()
        came = received(server, logs)
        assert any(text.startswith("fetching bundle") for text in came)
        logging.getLogger("edge_runtime.agent").warning("more")
        agent.serve_waiting()
        assert received(server, logs) == ["more"]
    assert [kept.line.text for kept in logs.lines("pi")] == [*came, "more"]
    assert [kept.line.text for kept in logs.lines("pi", since=logs.lines("pi")[-2].sequence)] == ["more"]


def test_the_lines_before_a_crash_follow_the_next_birth(bench: Bench) -> None:
    with keeping_log(bench.store.root):
        logging.getLogger("edge_runtime.agent").error("the last words")
    (bench.store.root / RUNNING_FILE).touch()
    everything = bench.hub.join()
    everything.subscribe("covey/v1/default/pi/+")
    hello = Hello(epoch="e", covey_version="0")
    bench.hub.publish(hello_topic("default"), encode_message(hello), retain=True)
    with keeping_log(bench.store.root) as log:
        agent = Agent(bench.config, bench.store, bench.hub.join(), "boot", log=log)
        for _ in ("the connection", "the hello"):
            agent.serve_waiting()
    topics, crash = [], []
    while (event := everything.receive(0)) is not None:
        if isinstance(event, Message):
            topics.append(event.topic.rsplit("/", 1)[-1])
            if topics[-1] == "log":
                crash.append(decode_message(event.payload, LogLines))
    assert topics == ["birth", "state", "birth", "state", "log"]
    assert [(message.reason, [line.text for line in message.lines]) for message in crash] == [
        ("crash", ["the last words"])
    ]


@pytest.mark.parametrize("payload", [b"\x00", b"\x91" * 5000, encode_message(Hello(epoch="e", covey_version="0"))])
def test_what_is_no_request_is_passed_over(bench: Bench, payload: bytes) -> None:
    with keeping_log(bench.store.root) as log:
        agent = Agent(bench.config, bench.store, bench.hub.join(), "boot", log=log)
        bench.hub.publish(bench.topic("log/get"), payload, retain=False)
        for _ in range(3):
            agent.serve_waiting()
        assert any("ignored a message on covey/v1/default/pi/log/get" in line.text for line in log.lines())


# -- the server's store ---------------------------------------------------------------------------------------------


def message(device: str, first: int, count: int, dropped: int = 0) -> LogLines:
    lines = [LogLine(first + number, float(first), "INFO", "a line") for number in range(count)]
    return LogLines(device=device, boot_id="1", reason="asked", dropped=dropped, lines=lines)


def test_lines_are_kept_once_and_bounded() -> None:
    logs = DeviceLogs()
    assert len(logs.take("pi", message("pi", 0, 10))) == 10
    assert logs.take("pi", message("pi", 0, 10)) == []  # another follower has asked for the same lines
    for first in range(10, 2000, 100):
        logs.take("pi", message("pi", first, 100, dropped=first))
    assert len(logs.lines("pi")) == KEPT_LINES
    assert [kept.sequence for kept in logs.lines("pi")] == sorted(kept.sequence for kept in logs.lines("pi"))
    for number in range(KEPT_DEVICES):
        logs.take(f"d{number}", message(f"d{number}", 0, 1))
    assert logs.lines("pi") == []
    logs.forget("d1")
    assert logs.lines("d1") == []
    with pytest.raises(ProtocolError, match="in the name of pi"):
        logs.take("other", message("pi", 0, 1))
