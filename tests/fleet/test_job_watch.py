"""``covey job watch`` as a process: through a restart of the server, on a terminal, and interrupted."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest
from fleets import Fleet, free_port, wait_for, write_job
from relay import relay_to

if TYPE_CHECKING:
    from pathlib import Path


pytestmark = pytest.mark.timeout(900)


def _submit(fleet: Fleet, rounds: int) -> None:
    folder = fleet.root / "job"
    folder.mkdir()
    job = write_job(folder, name="job", rounds=rounds, min_devices=1)
    fleet.covey("job", "submit", str(job), "--bundle", str(fleet.bundle.path))


def _command(fleet: Fleet, *flags: str) -> list[str]:
    return [sys.executable, "-m", "server.cli", "job", "watch", "job", "--state-dir", str(fleet.state_dir), *flags]


def test_it_goes_on_after_a_restart_and_shows_no_event_twice(fleet: Fleet, tmp_path: Path) -> None:
    server = fleet.stay()
    server.wait_event("serving")
    _submit(fleet, 4)
    path = tmp_path / "watched"
    with path.open("wb") as out:
        watching = subprocess.Popen(_command(fleet, "--format", "json"), stdout=out, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: b'"waiting"' in path.read_bytes(), "the first event")
        server.popen.send_signal(signal.SIGKILL)
        server.popen.wait(60)
        wait_for(lambda: b'"server_away"' in path.read_bytes(), "that the server is away")
        fleet.stay().wait_event("serving")
        fleet.device("pi-1", 0, stays=True)
        assert watching.wait(300) == 0
    finally:
        watching.kill()
        watching.wait()
    events = [json.loads(line) for line in path.read_text().splitlines()]
    closed = [event["round"] for event in events if event["event"] == "round_closed"]
    assert closed == [0, 1, 2, 3]
    assert [event["event"] for event in events].count("server_away") == 1
    assert events[-1] == {"event": "ended", "job": "job", "state": "finished", "reason": None}
    opened = next(event for event in events if event["event"] == "round_opened")
    assert opened["arms"]["pi-1"].startswith("split 2 x ")


def test_on_a_terminal_it_draws_rounds_and_devices_and_ctrl_c_leaves_the_job_running(fleet: Fleet) -> None:
    fleet.stay().wait_event("serving")
    _submit(fleet, 5000)
    fleet.device("pi-1", 0, stays=True)
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "160", "LINES": "60", "PYTHONFAULTHANDLER": "1"}
    watching = subprocess.Popen(_command(fleet), stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    seen = bytearray()

    def read() -> None:
        try:
            while part := os.read(ours, 4096):
                seen.extend(part)
        except OSError:  # the other side is closed
            return

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for part in (b"held-out loss", b"pi-1", b"split 2 x ", b"waits for ", b" left"):
            wait_for(lambda part=part: part in seen, f"{part!r} on the terminal")
        watching.send_signal(signal.SIGINT)
        try:
            code = watching.wait(60)
        except subprocess.TimeoutExpired:
            watching.send_signal(signal.SIGABRT)  # it writes where each of its threads is
            watching.wait(60)
            reader.join(30)
            pytest.fail(f"Ctrl-C did not end it: {seen[-8000:].decode(errors='replace')}")
        assert code == 130
    finally:
        watching.kill()
        watching.wait()
        reader.join(30)
        os.close(ours)
    assert b"job job goes on without this view" in seen
    assert fleet.covey("job", "show", "job")["state"] == "running"
    fleet.covey("job", "stop", "job")
    ended = fleet.covey("job", "watch", "job", code=11)
    assert (ended["state"], ended["error"]) == ("stopped", "job job is stopped")


@pytest.mark.slow
def test_on_a_network_that_falls_silent_it_goes_on_over_a_new_connection(fleet: Fleet, tmp_path: Path) -> None:
    port = free_port()
    fleet.stay("--mqtt-port", str(fleet.port), "--api-port", str(port)).wait_event("serving")
    _submit(fleet, 5)  # it waits for a device: nothing happens
    path = tmp_path / "watched"
    with relay_to(port) as relay, path.open("wb") as out:
        reach = ("--server", f"http://127.0.0.1:{relay.port}", "--token-file", str(fleet.state_dir / "api-token"))
        watching = subprocess.Popen(_command(fleet, "--format", "json", *reach), stdout=out, stderr=subprocess.DEVNULL)
        try:
            wait_for(lambda: b'"waiting"' in path.read_bytes(), "the first event")
            shown = relay.passed_parts
            wait_for(lambda: relay.passed_parts >= shown + 3, "the server to say that it is there")
            relay.fall_silent()
            relay.speak()
            wait_for(lambda: b'"server_away"' in path.read_bytes(), "that nothing has come for a while")
            fleet.covey("job", "stop", "job")
            assert watching.wait(300) == 11
        finally:
            watching.kill()
            watching.wait()
    assert b'"state": "stopped"' in path.read_bytes()
