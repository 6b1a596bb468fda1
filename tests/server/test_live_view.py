"""The live view of a job: restored from the ledger, devices of the open round, time left; following over restarts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from server import events
from server.client.client import Client, NoServerError
from server.client.following import follow
from server.views.progress import Progress
from server.views.status import duration_text, seconds_left

if TYPE_CHECKING:
    from collections.abc import Iterator


def _round(index: int, state: str = "aggregated", **fields: Any) -> dict[str, Any]:
    return {
        "round": index,
        "attempt": 0,
        "state": state,
        "offered": 2,
        "reports": 2,
        "slowest_s": 3.25,
        "bytes_up": 610,
        "bytes_down": 4321,
        "train_loss": 0.7,
        "loss": 0.65,
        "accuracy": 0.61,
        "adapter_sha256": "ab" * 32,
        "opened_at": f"2026-01-01 00:{index:02}:00",
        "closed_at": f"2026-01-01 00:{index:02}:50" if state == "aggregated" else None,
    } | fields


HISTORY = {
    "rounds_wanted": 12,
    "loss_start": 0.6931,
    "accuracy_start": 0.5,
    "round_list": [_round(0), _round(1), _round(2, "open", loss=None, accuracy=None, adapter_sha256=None)],
    "offer_list": [
        {"round": 2, "attempt": 0, "device": "a", "state": "reported", "detail": None, "level": 3},
        {"round": 2, "attempt": 0, "device": "b", "state": "accepted", "detail": None, "level": None},
        {"round": 1, "attempt": 0, "device": "c", "state": "lost", "detail": None, "level": None},
    ],
    "arm_list": [{"round": 2, "attempt": 0, "device": "b", "arm": "split 4 x 8"}],
}


def _text(progress: Progress) -> str:
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(progress.view())
    return console.export_text()


def test_a_view_that_saw_no_event_shows_what_the_ledger_says() -> None:
    progress = Progress("reviews", 12)
    progress.restore(HISTORY)
    text = _text(progress)
    for part in ("0.6931", "2/2", "3.2 s", "610", "4321", "0.6500", "abababab", "about 10 min left"):
        assert part in text
    lines = text.splitlines()
    a, b = (next(line for line in lines if f"│ {name} " in line) for name in "ab")
    assert "level 3" in a
    assert "has reported" in a
    assert "split 4 x 8" in b
    assert "at work" in b
    assert lines.index(b) < lines.index(a)  # whom the round waits for comes first
    assert "waits for 1 of 2" in text
    assert not any("│ c " in line for line in lines)


def test_events_say_what_each_device_of_the_round_does_and_count_once() -> None:
    progress = Progress("reviews", 3)
    report = events.ReportTaken(round=0, device="a", loss=0.6, seconds=2.0, bytes_up=300)
    for event in (
        events.RoundOpened(round=0, attempt=0, devices=["a", "b", "c"], arms={"a": "level 2"}),
        report,
        report,
        events.OfferFailed(round=0, device="b", reason="its battery is low\x1b[2J"),
        events.DeviceChanged(device="c", state="busy"),
    ):
        progress.take(event)
    text = _text(progress)
    for part in ("1/3", "300", "level 2", "has reported, 2.0 s", "its battery is low\\x1b[2J", "waits for 1 of 3"):
        assert part in text
    progress.take(events.Waiting(online=0, needed=1, ineligible={"c": "on battery"}, resting={"b": "refused twice"}))
    text = _text(progress)
    assert "on battery" in text
    assert "refused twice" in text


def test_time_left_is_not_known_before_a_round_has_ended_nor_after_the_last() -> None:
    assert seconds_left([_round(0, "open")], 5) is None
    assert seconds_left([_round(0)], 5) == 4 * 50
    assert seconds_left([_round(0), _round(1, "abandoned"), _round(3)], 5) == 3 * 180
    assert seconds_left([_round(0), _round(1)], 2) is None
    assert [duration_text(seconds) for seconds in (50, 600, 12600)] == ["50 s", "10 min", "3.5 h"]


class _Server(Client):
    """Hands out given answers; None: the server is away."""

    def __init__(self, streams: list[list[tuple[int | None, dict[str, Any]]] | None]) -> None:
        super().__init__()
        self.streams = streams
        self.asked_after: list[int] = []

    def get(self, path: str, **query: str | int) -> dict[str, Any]:  # noqa: ARG002
        if self.streams and self.streams[0] is None:
            self.streams.pop(0)
            raise NoServerError("no server answers", "start it")
        return {"path": path}

    def events(self, job: str, after: int) -> Iterator[tuple[int | None, dict[str, Any]]]:  # noqa: ARG002
        self.asked_after.append(after)
        yield from self.streams.pop(0) or []


def test_following_asks_for_what_it_has_not_seen_and_says_once_that_the_server_is_away() -> None:
    server = _Server([[(7, {"event": "a"})], None, None, [(8, {"event": "b"}), (None, {"event": "ended"})]])
    connected: list[dict[str, Any]] = []
    away: list[str] = []
    waits: list[float] = []
    got = list(follow(server, "job", 60.0, lambda: sum(waits), waits.append, connected.append, away.append))
    assert [event["event"] for event in got] == ["a", "b", "ended"]
    assert server.asked_after == [0, 7]
    assert len(connected) == 2
    assert len(away) == 1
    assert waits == [0.5, 1.0, 2.0]


def test_following_gives_up_when_its_patience_is_over() -> None:
    server = _Server([[(7, {"event": "a"})], *[None] * 50])
    waits: list[float] = []
    following = follow(server, "job", 30.0, lambda: sum(waits), waits.append, lambda _: None, lambda _: None)
    with pytest.raises(NoServerError):
        list(following)
    assert 30 < sum(waits) < 60
