"""Many texts for one device: how they are divided, and what becomes of what the device refuses."""

from __future__ import annotations

from typing import Any

import pytest

from edge_runtime.errors import CoveyError, DataError, NetworkError
from edge_runtime.predictions.limits import MinuteLimit
from edge_runtime.protocol.predictions import TOO_LARGE
from server.client.prediction_batches import MOST_WAITS, answers
from server.errors import error_of


class Device:
    """Takes so many texts a minute and at once; the test's clock goes on when it is waited for."""

    def __init__(self, a_minute: int = 1000, at_once: int = 1000) -> None:
        self.now, self.at_once = 0.0, at_once
        self.limit = MinuteLimit("texts", a_minute, lambda: self.now)
        self.requests: list[tuple[int, int]] = []
        self.said: list[str] = []

    def ask(self, texts: list[str], first: int) -> dict[str, Any]:
        try:
            self.limit.take(len(texts))
            if len(texts) > self.at_once:
                raise DataError(f"the answer has 2 bytes, 1 {TOO_LARGE}", "ask for fewer texts at once")
        except CoveyError as error:  # as the server hands it on
            raise error_of(error.exit_code, f"pi: {error.what}", error.hint) from error
        self.requests.append((first, len(texts)))
        return {"predictions": texts}

    def wait(self, seconds: float) -> None:
        self.now += seconds

    def answered(self, texts: list[str], most: int = 64) -> list[str]:
        found = answers(texts, most, self.ask, self.wait, self.said.append)
        return [text for answer in found for text in answer["predictions"]]


TEXTS = [str(number) for number in range(150)]


def test_texts_are_divided_and_their_places_named() -> None:
    device = Device()
    assert device.answered(TEXTS) == TEXTS
    assert device.requests == [(0, 64), (64, 64), (128, 22)]
    assert Device().answered(["x" * 30_000] * 3) == ["x" * 30_000] * 3


@pytest.mark.parametrize("at_once", [1, 5, 40])
def test_what_is_too_large_is_halved(at_once: int) -> None:
    device = Device(a_minute=100_000, at_once=at_once)
    assert device.answered(TEXTS) == TEXTS
    assert max(count for _, count in device.requests) <= at_once
    assert [first for first, _ in device.requests] == [
        sum(count for _, count in device.requests[:index]) for index in range(len(device.requests))
    ]


def test_one_text_that_is_too_large_is_an_error() -> None:
    with pytest.raises(DataError, match=TOO_LARGE):
        Device(at_once=0).answered(["a"])


@pytest.mark.parametrize("a_minute", [10, 70])
def test_a_limit_is_waited_for_and_said(a_minute: int) -> None:
    """10 a minute: a request of 64 is never taken, and is halved; 70 a minute: the second has to wait."""
    device = Device(a_minute=a_minute)
    assert device.answered(TEXTS) == TEXTS
    assert 60 <= device.now <= 60 * len(TEXTS) / a_minute + len(device.said)
    assert f"{a_minute} texts a minute are taken here" in device.said[0]
    assert "of 150 texts are answered" in device.said[0]


def test_waiting_is_bounded_and_other_errors_are_raised_at_once() -> None:
    waits: list[float] = []

    def full(_texts: list[str], _first: int) -> dict[str, Any]:
        raise NetworkError("full", "send it again after 7 s")

    with pytest.raises(NetworkError, match="full"):
        list(answers(["a"], 64, full, waits.append, lambda _: None))
    assert waits == [7] * MOST_WAITS

    def away(_texts: list[str], _first: int) -> dict[str, Any]:
        raise NetworkError("pi is not here", "see: covey device list")

    with pytest.raises(NetworkError, match="not here"):
        list(answers(["a", "b"], 64, away, pytest.fail, pytest.fail))
