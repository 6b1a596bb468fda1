"""A fleet that lost its broker at one instant does not come back at one."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.network.address import parse_broker
from edge_runtime.network.mqtt_client import make_client
from edge_runtime.network.reconnect_pauses import LEAST_PAUSE_S, WIDEST_S, ReconnectPauses

DEVICES = 1000
LARGEST_SHARE = 0.25


def largest_share(moments: list[float], window_s: float = 1.0) -> float:
    """Return the largest share of the fleet that falls into one window of time, wherever it begins."""
    ordered = sorted(moments)
    first, most = 0, 0
    for last, moment in enumerate(ordered):
        while moment - ordered[first] > window_s:
            first += 1
        most = max(most, last - first + 1)
    return most / DEVICES


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32), outage_s=st.floats(0, 900))
def test_no_second_sees_more_than_a_quarter_of_the_fleet(seed: int, outage_s: float) -> None:
    """All lose the broker at 0; it is back after ``outage_s``. Neither attempts nor logins come in one second."""
    draws = random.Random(seed)
    firsts, logins = [], []
    for _ in range(DEVICES):
        pauses = ReconnectPauses(random.Random(draws.getrandbits(64)))
        pauses.lost(LEAST_PAUSE_S)
        at = pauses.draw()
        firsts.append(at)
        while at < outage_s:
            at += pauses.draw()
        logins.append(at)
    assert largest_share(firsts) <= LARGEST_SHARE
    assert largest_share(logins) <= LARGEST_SHARE
    assert max(logins) <= outage_s + LEAST_PAUSE_S + WIDEST_S + 6  # nobody stays away for long


@given(seed=st.integers(0, 2**32), least_s=st.floats(1, 90), attempts=st.integers(1, 60))
def test_pauses_are_bounded(seed: int, least_s: float, attempts: int) -> None:
    pauses = ReconnectPauses(random.Random(seed))
    assert LEAST_PAUSE_S <= pauses.draw() <= 2 * LEAST_PAUSE_S  # a first login is not made to wait
    pauses.lost(least_s)
    for _ in range(attempts):
        assert least_s <= pauses.draw() <= least_s + WIDEST_S


def test_pahos_thread_waits_for_the_drawn_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is paho that waits: a version of it that waited otherwise would bring all devices back at one instant."""
    now, drawn = [1000.0], iter([2.25, 7.5])
    monkeypatch.setattr("paho.mqtt.client.time_func", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    client = make_client(parse_broker("mqtt://127.0.0.1:1"), "covey-x", None)
    client.draw_pause_s = lambda: next(drawn)
    client.connect_async("127.0.0.1", 1)
    for end in (1002.25, 1009.75):
        client._reconnect_wait()
        assert now[0] == pytest.approx(end)
