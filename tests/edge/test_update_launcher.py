"""The launcher as a process: it starts, watches, goes back, and is killed at any point."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fleets import wait_for
from slots import FakeSlots, alive, stop

from edge_runtime.errors import StorageError, UpdateError
from edge_runtime.notify import notifier_of
from edge_runtime.update.heartbeat import PIPE_VARIABLE
from edge_runtime.update.launcher_file import PACKED, launcher_bytes
from edge_runtime.update.requests import last_outcome, launcher_runs, request_rollback, request_switch
from edge_runtime.update.slots import INSTALL_LOCK, linked_slot, locked, slot_python
from edge_runtime.update.state import Outcome, State, read_state, write_state


@pytest.fixture
def slots(tmp_path: Path) -> FakeSlots:
    return FakeSlots(tmp_path / "update")


@pytest.fixture
def launch(slots: FakeSlots) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def start(healthy_s: float = 30.0, trial_s: float = 0.3) -> subprocess.Popen[bytes]:
        started.append(slots.launch(healthy_s, trial_s))
        return started[-1]

    yield start
    for launcher in started:
        launcher.kill()
        launcher.wait()


def ended(slots: FakeSlots) -> Outcome:
    """Wait until a switch has ended, and return how."""

    def outcome() -> Outcome | None:
        found = last_outcome(slots.root)
        return found if found is not None and found.result != "on-trial" else None

    found: Outcome = wait_for(outcome, "end of the switch", 60)
    return found


def running(slots: FakeSlots, slot: str, more_than: int = 0) -> int:
    """Wait until the newest start is one of a slot and still runs; return its process."""

    def found() -> int | None:
        starts = slots.starts()
        return (
            starts[-1][1]
            if len(starts) > more_than and starts[-1][0] == f"env-{slot}" and alive(starts[-1][1])
            else None
        )

    pid: int = wait_for(found, f"device in slot {slot}", 60)
    return pid


Launch = Callable[..., "subprocess.Popen[bytes]"]


def test_a_good_version_is_accepted_and_the_one_before_is_one_command_away(slots: FakeSlots, launch: Launch) -> None:
    launcher = launch()
    first = running(slots, "a")
    request_switch(slots.root, slots.put("b", "0.2", "serve"))
    outcome = ended(slots)
    assert (outcome.result, outcome.from_version, outcome.to_version) == ("accepted", "0.1", "0.2")
    assert linked_slot(slots.root) == "b"
    assert not alive(first)
    second = running(slots, "b")
    request_rollback(slots.root)
    running(slots, "a", 2)
    wait_for(lambda: ended(slots).kind == "rollback", "rollback", 60)
    assert ended(slots).result == "accepted"
    assert not alive(second)
    assert stop(launcher) == 0
    assert [name for name, _ in slots.starts()] == ["env-a", "env-b", "env-a"]
    assert not alive(slots.starts()[-1][1])


@pytest.mark.parametrize(
    ("does", "healthy_s", "reason"),
    [
        ("crash", 30.0, "it ended by itself with exit code 70: broken on purpose"),
        ("die", 30.0, "it ended by itself with signal 11"),
        ("exit3", 30.0, "it ended by itself with exit code 3"),
        ("once", 30.0, "it ended by itself with exit code 0"),
        ("hang", 0.5, "it did not begin to serve in 0.5 s"),
        ("silent", 0.5, "it began to serve, and gave no sign of life any more"),
        ("lost", 0.5, "it does not reach the broker, and the version before does"),
    ],
)
def test_a_bad_version_goes_back_and_says_why(
    slots: FakeSlots, launch: Launch, does: str, healthy_s: float, reason: str
) -> None:
    launch(healthy_s)
    running(slots, "a")
    request_switch(slots.root, slots.put("b", "0.2", does))
    outcome = ended(slots)
    assert (outcome.result, outcome.to_version, outcome.reason) == ("rolled-back", "0.2", reason)
    running(slots, "a", 3)
    assert [name for name, _ in slots.starts()] == ["env-a", "env-b", "env-b", "env-a"]  # it has two attempts
    assert linked_slot(slots.root) == "a"
    with pytest.raises(UpdateError, match="no version before"):
        request_rollback(slots.root)


@pytest.mark.parametrize("does", ["offline", "waiting"])
def test_without_a_network_nothing_is_rolled_back(slots: FakeSlots, launch: Launch, does: str) -> None:
    """The version before does not reach the broker either: the trial waits, however often it is started."""
    launcher = launch(0.3 if does == "waiting" else 30.0)
    running(slots, "a")
    (slots.root / "network").unlink()
    request_switch(slots.root, slots.put("b", "0.2", does))
    wait_for(lambda: "waits for the network" in slots.log(), "trial without a network", 60)
    state = read_state(slots.root)
    assert state is not None
    assert state.trial is not None
    wait_for(lambda: (now := read_state(slots.root)) and now.trial and now.trial.attempts == 0, "the spared attempt")
    stop(launcher)
    (slots.root / "network").touch()
    launch(30.0)
    assert ended(slots).result == "accepted"


def test_one_failed_attempt_is_forgiven(slots: FakeSlots, launch: Launch) -> None:
    launch()
    running(slots, "a")
    request_switch(slots.root, slots.put("b", "0.2", "crash serve"))
    assert ended(slots).result == "accepted"


def test_a_trial_ends_where_the_owner_wants_the_version_before(slots: FakeSlots, launch: Launch) -> None:
    launch(30.0, 600.0)
    running(slots, "a")
    request_switch(slots.root, slots.put("b", "0.2", "serve"))
    running(slots, "b")
    with pytest.raises(UpdateError, match="on trial"):
        request_switch(slots.root)
    request_rollback(slots.root)
    assert ended(slots).reason == "the owner asked for the version before"
    running(slots, "a", 2)


def test_the_exit_code_of_an_accepted_version_is_the_launchers(slots: FakeSlots, launch: Launch) -> None:
    (slots.root / "env-a" / "does").write_text("exit3")
    assert launch().wait(60) == 3
    (slots.root / "env-a" / "does").write_text("die")
    assert launch().wait(60) == 128 + signal.SIGSEGV


def test_an_accepted_version_that_dies_at_each_start_goes_back(slots: FakeSlots, launch: Launch) -> None:
    good = slots.put("b", "0.2", "serve")
    write_state(slots.root, State("a", good.slot, good.sha256))
    (slots.root / "env-a" / "does").write_text("die")
    for _ in range(4):
        assert launch().wait(60) == 128 + signal.SIGSEGV
    launch()
    running(slots, "b")
    assert "it ended 5 times in a row soon after its start, the last time with signal 11" in ended(slots).reason


def test_a_clean_stop_in_a_trial_costs_no_attempt_and_a_power_cut_does(slots: FakeSlots, launch: Launch) -> None:
    launcher = launch(30.0, 600.0)
    running(slots, "a")
    request_switch(slots.root, slots.put("b", "0.2", "serve"))
    for _ in range(3):
        running(slots, "b", len(slots.starts()) - 1)
        stop(launcher)
        seen = len(slots.starts())
        launcher = launch(30.0, 600.0)
        running(slots, "b", seen)
    for expected in ("b", "a"):
        device, seen = slots.starts()[-1][1], len(slots.starts())
        launcher.kill()
        launcher.wait()
        wait_for(lambda pid=device: not alive(pid), "end of the device whose launcher was killed", 60)
        launcher = launch(30.0, 600.0)
        running(slots, expected, seen)
    assert "cut off" in ended(slots).reason


def test_only_one_launcher_runs_and_an_installation_keeps_it_from_switching(slots: FakeSlots, launch: Launch) -> None:
    launch()
    running(slots, "a")
    assert launcher_runs(slots.root)
    second = launch()
    assert second.wait(60) == 8
    assert "another launcher runs" in slots.log()
    found = slots.put("b", "0.2", "serve")
    with locked(slots.root, INSTALL_LOCK, "", ""), pytest.raises(StorageError, match="being installed"):
        request_switch(slots.root, found)
    assert len(slots.starts()) == 1


def test_a_device_that_heeds_no_signal_does_not_keep_its_launcher(slots: FakeSlots, launch: Launch) -> None:
    """The service manager kills the launcher; the kernel then kills the device."""
    (slots.root / "env-a" / "does").write_text("deaf")
    launcher = launch()
    device = running(slots, "a")
    launcher.send_signal(signal.SIGTERM)
    launcher.kill()
    launcher.wait()
    wait_for(lambda: not alive(device), "end of a deaf device", 60)


def test_a_damaged_state_and_a_lost_link_leave_the_version_that_ran(slots: FakeSlots, launch: Launch) -> None:
    (slots.root / "state.json").write_bytes(b"\0" * 50)
    launcher = launch()
    running(slots, "a")
    stop(launcher)
    assert (slots.root / "state.json.bad").exists()
    (slots.root / "current").unlink()
    launch()
    running(slots, "a", 1)
    assert linked_slot(slots.root) == "a"


def test_a_folder_without_a_version_says_what_to_do(slots: FakeSlots, launch: Launch) -> None:
    (slots.root / "env-a" / "slot.json").unlink()
    assert launch().wait(60) == 3
    assert "covey-edge update setup WHEEL" in slots.log()


def test_the_launcher_needs_nothing_but_the_standard_library(tmp_path: Path) -> None:
    path = tmp_path / "launcher.pyz"
    path.write_bytes(launcher_bytes())
    with zipfile.ZipFile(path) as archive:
        assert sorted(archive.namelist()) == sorted([*PACKED, "__main__.py"])
    code = (
        f"import sys; sys.path = [{str(path)!r}] + [p for p in sys.path if 'site-packages' not in p]\n"
        "import edge_runtime.update.launcher\n"
        "own = [n for n, m in sys.modules.items() if 'site-packages' in (getattr(m, '__file__', '') or '')]\n"
        "print(own, edge_runtime.update.launcher.__file__.startswith(sys.path[0]))"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "True"]


@pytest.mark.parametrize("seed", range(int(os.environ.get("COVEY_KILL_RUNS", "1"))))
def test_killed_at_random_something_always_runs(slots: FakeSlots, launch: Launch, seed: int) -> None:
    """Updates, good and bad, while launcher or device are killed with -9; COVEY_KILL_RUNS asks for more runs."""
    rng = random.Random(seed)
    launcher = launch(0.5, 0.1)
    running(slots, "a")
    for number in range(6):
        state = read_state(slots.root)
        assert state is not None
        if state.trial is None and rng.random() < 0.7:
            slot = "b" if state.current == "a" else "a"
            does = rng.choice(["serve", "crash", "die", "serve crash"])
            found = slots.put(slot, f"0.{number + 2}", does)
            with contextlib.suppress(UpdateError):  # the launcher has not yet taken the request before
                request_switch(slots.root, found)
        pause_until = time.monotonic() + rng.random() * 0.6
        wait_for(lambda until=pause_until: time.monotonic() >= until, "pause", 60)
        starts = slots.starts()
        if rng.random() < 0.5 and alive(starts[-1][1]):
            os.kill(starts[-1][1], signal.SIGKILL)
        else:
            launcher.kill()
        if launcher.poll() is not None or rng.random() < 0.5:
            launcher.kill()
            launcher.wait()
            launcher = launch(0.5, 0.1)
        wait_for(
            lambda now=launcher: now.poll() is not None or any(alive(pid) for _, pid in slots.starts()[-1:]), "life", 60
        )
        assert sum(alive(pid) for _, pid in slots.starts()) <= 1, seed
    launcher.kill()
    launcher.wait()
    for slot in ("a", "b"):
        (slots.root / f"env-{slot}" / "does").write_text("serve")
    seen = len(slots.starts())
    launch(30.0, 0.1)
    wait_for(lambda: len(slots.starts()) > seen and alive(slots.starts()[-1][1]), "a device at last", 60)
    wait_for(lambda: (state := read_state(slots.root)) is not None and state.trial is None, "an end of the trial", 60)


def test_a_device_that_ends_again_and_again_wears_no_card(slots: FakeSlots) -> None:
    """A board waits for its rows with a start every few seconds; each write of the state makes a new file."""
    (slots.root / "env-a" / "does").write_text("exit3")
    assert slots.launch().wait(60) == 3
    before = (slots.root / "state.json").stat()
    for _ in range(2):
        assert slots.launch().wait(60) == 3
    after = (slots.root / "state.json").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert len(slots.starts()) == 3


def test_what_systemd_has_said_reaches_the_device(slots: FakeSlots, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device tells systemd that it is ready and gets on; the launcher says nothing in its place."""
    for name, value in (("NOTIFY_SOCKET", "/run/notify"), ("WATCHDOG_USEC", "1800000000"), ("WATCHDOG_PID", "1")):
        monkeypatch.setenv(name, value)
    slot_python(slots.root, "a").write_text(f"#!/bin/sh\nenv >'{slots.root}/environment'\nexit 3\n")
    assert slots.launch().wait(60) == 3
    lines = (slots.root / "environment").read_text().splitlines()
    environment = dict(line.split("=", 1) for line in lines if "=" in line)
    assert PIPE_VARIABLE in environment
    notifier = notifier_of(environment, os.getpid(), may_speak_for=True)
    assert notifier.is_there
    assert notifier.watchdog_s == 1800
