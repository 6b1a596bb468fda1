"""Streams of events over a network that drops connections without a word: they are seen to be lost, and heal."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import pytest
from fleets import wait_for
from operator_sites import ALICE, site
from relay import relay_to

from server.client.client import KEEP_ALIVE_S, SILENCE_S, Client, NoServerError
from server.client.following import follow

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from operator_sites import Site
    from relay import Relay


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A server with a job that waits for ever, and that says every 0.1 s that it is there."""
    monkeypatch.setattr("server.api.job_routes.KEEP_ALIVE_S", 0.1)
    with site(tmp_path, ("quiet",)) as made:
        made.ledger.job_is("quiet", "queued", None)
        yield made


def client_of(relay: Relay, silence_s: float) -> Client:
    return Client(f"http://127.0.0.1:{relay.port}", token=ALICE, silence_s=silence_s)


def port_of(server: Site) -> int:
    port = urlsplit(server.url).port
    assert port is not None
    return port


def test_a_quiet_stream_has_comments_and_stays(server: Site) -> None:
    with relay_to(port_of(server)) as relay, client_of(relay, 5.0) as client, ThreadPoolExecutor(1) as pool:
        events = pool.submit(lambda: list(client.events("quiet", 0)))
        comments = 0
        began = time.monotonic()
        headers = {"authorization": f"Bearer {ALICE}"}
        with httpx.stream("GET", f"{server.url}/api/v1/jobs/quiet/events", headers=headers, timeout=60) as stream:
            for line in stream.iter_lines():
                assert line in ("", ": alive")
                comments += line == ": alive"
                if time.monotonic() - began > 7.0:  # longer than the reader bears silence
                    break
        assert comments > 3
        server.ledger.job_is("quiet", "stopped", "enough")
        ((number, event),) = events.result(60)
        assert (number, event["event"], event["state"]) == (None, "ended", "stopped")
        assert relay.connections == 1


def test_an_older_server_without_comments_is_not_taken_for_lost(server: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.api.job_routes.KEEP_ALIVE_S", 3600.0)
    with relay_to(port_of(server)) as relay, client_of(relay, 1.0) as client, ThreadPoolExecutor(1) as pool:
        events = pool.submit(lambda: list(client.events("quiet", 0)))
        wait_for(lambda: relay.connections >= 3, "the stream to be opened again")
        server.ledger.job_is("quiet", "stopped", "enough")
        assert [event["state"] for _, event in events.result(120)] == ["stopped"]


def test_a_server_that_has_said_that_it_is_there_is_lost_when_it_falls_silent(server: Site) -> None:
    with relay_to(port_of(server)) as relay, client_of(relay, 2.0) as client, ThreadPoolExecutor(1) as pool:
        events = pool.submit(lambda: list(client.events("quiet", 0)))
        wait_for(lambda: relay.passed_parts >= 10, "comments")
        relay.fall_silent()
        with pytest.raises(NoServerError, match="nothing came from the server"):
            events.result(120)
        assert relay.connections == 1
    assert 2 * KEEP_ALIVE_S < SILENCE_S < 60


def test_a_server_that_falls_silent_before_it_answers_is_lost(server: Site) -> None:
    with relay_to(port_of(server)) as relay, client_of(relay, 1.0) as client:
        relay.fall_silent()
        with pytest.raises(NoServerError, match="nothing came from the server"):
            list(client.events("quiet", 0))


def test_a_watch_goes_on_over_a_new_connection_when_its_own_falls_silent(server: Site) -> None:
    connected: list[dict[str, Any]] = []
    away: list[str] = []
    stop = threading.Event()
    with relay_to(port_of(server)) as relay, client_of(relay, 2.0) as client, ThreadPoolExecutor(1) as pool:
        watch = pool.submit(
            lambda: list(
                follow(
                    client, "quiet", 300.0, time.monotonic, lambda s: bool(stop.wait(s)), connected.append, away.append
                )
            )
        )
        wait_for(lambda: relay.passed_parts >= 20, "the watch, and comments")
        relay.fall_silent()
        relay.speak()
        wait_for(lambda: len(connected) >= 2, "a new connection")
        server.ledger.job_is("quiet", "stopped", "enough")
        assert [event["state"] for event in watch.result(120)] == ["stopped"]
    assert away
    assert "nothing came from the server" in away[0]
