"""A device without usable rows: says so once, is asked again when its file changes, and gets every adapter."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from bench import bench_of, drain, sync

from edge_runtime.agent.agent import Agent
from edge_runtime.data.config import DataConfig
from edge_runtime.data.watch import RowsWatch
from edge_runtime.errors import DataError
from edge_runtime.network.transport import Message
from edge_runtime.protocol.messages import decode_message, encode_message
from edge_runtime.protocol.presence import Birth, DeviceState
from edge_runtime.protocol.reports import PlanRefused, RoundReport, Synced

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bench import Bench

    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.network.in_process import InProcessTransport

WRONG = json.dumps({"text": "a film", "label": "ugly"}) + "\n"
UNUSABLE = {
    "wrong labels": WRONG.encode(),
    "no rows": b"",
    "blank lines": b"\n\n",
    "damaged rows": b'{"text": "a \\ud83d", "label": "good"}\n',
    "another encoding": b'{"text": "caf\xe9", "label": "good"}\n',
    "an array": b'["a film", "good"]',
}


class Listened:
    """An agent on the bench's hub, and what it says."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.reports, self.states, self.births = (self._listen(kind) for kind in ("report", "state", "birth"))
        self.agent = Agent(bench.config, bench.store, bench.hub.join(), "boot")
        self.attempt = 0

    def _listen(self, kind: Any) -> InProcessTransport:
        listener = self.bench.hub.join()
        listener.subscribe(self.bench.topic(kind))
        return listener

    def offer(self) -> list[Any]:
        """Offer a round; return what the agent reports."""
        plan = self.bench.train_plan(self.bench.initial(), attempt=self.attempt)
        self.attempt += 1
        self.bench.hub.publish(self.bench.topic("plan"), encode_message(plan), retain=False)
        return self.turn()

    def turn(self) -> list[Any]:
        """Let the agent handle what has arrived, and look at its file; return what it reports."""
        for _ in range(2):
            self.agent.serve_waiting()
        return drain(self.reports)

    def said(self) -> list[DeviceState]:
        """Return the states since the last call."""
        return messages(self.states, DeviceState)


def messages(listener: InProcessTransport, kind: Any) -> list[Any]:
    events = [event for event in iter(lambda: listener.receive(0), None) if isinstance(event, Message)]
    return [decode_message(event.payload, kind) for event in events]


@pytest.fixture
def bench(tmp_path: Path, tiny_bundle: Bundle) -> Iterator[Bench]:
    with bench_of(tmp_path, tiny_bundle) as made:
        yield made


def test_it_says_so_once_and_works_again_when_its_file_has_changed(bench: Bench) -> None:
    rows = bench.root / "data.jsonl"
    good = rows.read_text()
    rows.write_text(good + WRONG)
    device = Listened(bench)
    device.turn()
    assert [state.ineligible for state in device.said()] == [None]  # it does not know the labels yet
    refused = device.offer()[-1]
    assert isinstance(refused, PlanRefused)
    assert refused.code == DataError.exit_code
    reason = "its rows are unusable: 1 of 13 rows are wrong, the first in line 13"
    states = device.said()
    assert (states[-1].state, states[-1].ineligible) == ("online", reason)
    assert device.turn() == []
    assert device.said() == []  # once
    assert isinstance(device.offer()[-1], PlanRefused)  # a plan that comes nevertheless
    assert {state.ineligible for state in device.said()} == {reason}
    rows.write_text(good)
    assert device.turn() == []
    assert [(state.state, state.ineligible) for state in device.said()] == [("online", None)]
    messages(device.births, Birth)
    report = device.offer()[-1]
    assert isinstance(report, RoundReport)
    assert report.examples == 12
    assert messages(device.births, Birth)[-1].rows == 12
    assert {state.ineligible for state in device.said()} == {None}


@pytest.mark.parametrize("missing", [False, True])
def test_a_missing_or_empty_file_is_said_before_the_first_plan(bench: Bench, missing: bool) -> None:
    rows = bench.root / "data.jsonl"
    good = rows.read_text()
    rows.unlink() if missing else rows.write_text("")
    device = Listened(bench)
    device.turn()
    expected = "its rows are unusable: " + ("its file cannot be read" if missing else "it has no rows")
    assert [state.ineligible for state in device.said()] == [expected]
    rows.write_text(good)
    device.turn()
    assert [state.ineligible for state in device.said()] == [None]
    assert isinstance(device.offer()[-1], RoundReport)


@pytest.mark.parametrize("fault", [*UNUSABLE, "no file", "a refusing tokenizer"])
def test_it_takes_the_final_adapter_nevertheless(bench: Bench, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = bench.root / "data.jsonl"
    if fault == "no file":
        rows.unlink()
    elif fault == "a refusing tokenizer":
        monkeypatch.setattr("edge_runtime.data.tokens.TextEncoder.encode_each", fail)
    else:
        rows.write_bytes(UNUSABLE[fault])
    device = Listened(bench)
    device.turn()
    assert isinstance(device.offer()[-1], PlanRefused)
    reference, theta, _ = bench.next_adapter()
    bench.hub.publish(bench.topic("plan"), encode_message(sync(bench, reference)), retain=False)
    finished = device.agent.serve_waiting()
    assert finished is not None
    assert finished.adapter_sha256 == reference.file.sha256
    assert isinstance(drain(device.reports)[-1], Synced)
    assert bench.store.adapter_file(reference.file.sha256).read_bytes() == theta.tobytes()


def fail(*_args: Any) -> None:
    raise RuntimeError("the tokenizer ends")


def test_a_new_connection_or_another_bundle_asks_again(tmp_path: Path) -> None:
    """Another server may have other labels."""
    path = tmp_path / "a.jsonl"
    path.write_text("x")
    watch = RowsWatch(path)
    assert watch.reason is None
    watch.refuse(watch.stamp(), "ab" * 32, DataError("quotes a row", facts="1 of 1 rows are wrong"))
    assert watch.reason == "1 of 1 rows are wrong"
    watch.expect("ab" * 32)
    assert watch.reason == "1 of 1 rows are wrong"
    watch.expect("cd" * 32)
    assert watch.reason is None
    watch.refuse(watch.stamp(), "ab" * 32, DataError("quotes a row", facts="1 of 1 rows are wrong"))
    watch.forget()
    assert watch.reason is None
    watch.refuse(watch.stamp(), "ab" * 32, DataError("quotes a row", facts="1 of 1 rows are wrong"))
    other = tmp_path / "b.jsonl"
    other.write_text("x")
    other.replace(path)  # of the same size, but another file
    assert watch.reason is None
    path.unlink()
    assert watch.reason == "its file cannot be read"


def test_rows_that_appear_while_they_are_refused_are_seen(tmp_path: Path) -> None:
    """The stamp is the one before reading: a change while the file was read is a change."""
    path = tmp_path / "a.jsonl"
    path.write_text("x")
    watch = RowsWatch(path)
    before = watch.stamp()
    path.write_text("a longer text")
    watch.refuse(before, "ab" * 32, DataError("quotes a row", facts="1 of 1 rows are wrong"))
    assert watch.reason is None


def test_configured_columns_reach_the_device(bench: Bench) -> None:
    path = bench.root / "rows.csv"
    path.write_bytes("1.0;ein schöner Film\n0.0;kein guter Film\n".encode("windows-1252"))
    names = {"1.0": "good", "0.0": "bad"}
    data = DataConfig(str(path), encoding="windows-1252", columns=["label", "text"], label_names=names)
    bench.config = msgspec.structs.replace(bench.config, data=data)
    report = (device := Listened(bench)).turn() or device.offer()[-1]
    assert isinstance(report, RoundReport)
    assert report.examples == 2
