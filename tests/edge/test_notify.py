"""What services tell systemd over a real socket: ready, status, signs of life while they get on, the end."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import threading
from typing import TYPE_CHECKING

import pytest
from fleets import Fleet, free_port

from edge_runtime.notify import SOCKET, WATCHDOG, WATCHDOG_PID, Notifier, notifier_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle


class Manager:
    """systemd's end of the socket."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._socket.settimeout(60.0)

    def hear(self) -> list[str]:
        """Return the lines of the next message."""
        return self._socket.recv(4096).decode().splitlines()

    def wait_for(self, line: str) -> list[str]:
        """Return all lines until one."""
        heard: list[str] = []
        while line not in heard:
            heard += self.hear()
        return heard

    def waiting(self) -> list[str]:
        """Return the lines that have arrived."""
        self._socket.setblocking(False)
        try:
            return list(itertools.chain.from_iterable(iter(self._hear_or_none, None)))
        finally:
            self._socket.settimeout(60.0)

    def hear_until_quiet(self) -> int:
        """Return how many messages come until there is none for a second, 20 at most."""
        self._socket.settimeout(1.0)
        try:
            for count in range(20):
                try:
                    self.hear()
                except TimeoutError:
                    return count
            return 20
        finally:
            self._socket.settimeout(60.0)

    def _hear_or_none(self) -> list[str] | None:
        try:
            return self.hear()
        except BlockingIOError:
            return None

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    made = Manager(str(tmp_path / "notify") if request.param == "path" else f"@covey-test-{os.getpid()}")
    yield made
    made.close()


def test_what_is_told(manager: Manager) -> None:
    notifier = Notifier(manager.address)
    notifier.ready("fleet a\nREADY=0")
    assert manager.hear() == ["READY=1", "STATUS=fleet a READY=0"]
    notifier.status("serving")
    notifier.alive()
    notifier.stopping()
    assert [manager.hear() for _ in range(3)] == [["STATUS=serving"], ["WATCHDOG=1"], ["STOPPING=1"]]
    notifier.watch()  # not watched
    assert manager.waiting() == []


def test_nobody_to_tell_and_a_manager_that_is_gone(manager: Manager) -> None:
    for notifier in (Notifier(None, 1.0), Notifier(manager.address, 1.0)):
        manager.close()
        notifier.ready("x")
        notifier.watch()
        notifier.stopping()


def test_signs_of_life_end_with_the_work_and_begin_again_with_it(manager: Manager) -> None:
    looked, done = threading.Semaphore(0), 0

    def work() -> float:
        looked.release()
        return done

    notifier = Notifier(manager.address, watchdog_s=0.04)
    notifier.watch(work)
    for _ in range(10):
        assert looked.acquire(timeout=60)
    assert manager.waiting() == ["WATCHDOG=1"]  # the first, before any look
    done = 1
    assert manager.hear() == ["WATCHDOG=1"]
    notifier.stopping()
    assert manager.waiting()[-1:] == ["STOPPING=1"]


def test_a_thread_that_waits_for_ever_is_seen_by_its_processor_time(manager: Manager) -> None:
    notifier, hangs, goes_on = Notifier(manager.address, watchdog_s=0.2), threading.Event(), threading.Event()
    end = threading.Event()

    def main() -> None:
        notifier.watch()
        hangs.set()
        goes_on.wait()
        while not end.is_set():
            sum(range(1000))

    thread = threading.Thread(target=main)
    thread.start()
    assert hangs.wait(60)
    assert manager.hear() == ["WATCHDOG=1"]
    assert manager.hear_until_quiet() < 20  # its way into the wait
    goes_on.set()
    assert manager.hear() == ["WATCHDOG=1"]
    end.set()
    thread.join(60)
    notifier.stopping()


@pytest.mark.parametrize(
    ("said", "may_speak_for", "watchdog_s"),
    [
        ({WATCHDOG: "2000000", WATCHDOG_PID: "7"}, False, 2.0),
        ({WATCHDOG: "2000000"}, False, 2.0),
        ({WATCHDOG: "2000000", WATCHDOG_PID: "8"}, False, None),
        ({WATCHDOG: "2000000", WATCHDOG_PID: "8"}, True, 2.0),
        ({WATCHDOG: "0"}, False, None),
        ({WATCHDOG: "soon"}, False, None),
        ({}, False, None),
    ],
)
def test_what_systemd_said_is_taken_out_of_the_environment(
    said: dict[str, str], may_speak_for: bool, watchdog_s: float | None
) -> None:
    environment = {**said, SOCKET: "/run/x", "HOME": "/"}
    notifier = notifier_of(environment, 7, may_speak_for=may_speak_for)
    assert (notifier.is_there, notifier.watchdog_s) == (True, watchdog_s)
    assert environment == {"HOME": "/"}


def test_a_version_that_a_launcher_ends_does_not_end_the_service(manager: Manager) -> None:
    said = {SOCKET: manager.address, WATCHDOG: "100000000", WATCHDOG_PID: "8"}
    notifier = notifier_of(said, 7, may_speak_for=True)
    notifier.watch(lambda: 0.0)
    notifier.stopping()
    notifier.status("the next one")
    assert manager.wait_for("STATUS=the next one") == ["WATCHDOG=1", "STATUS=the next one"]


@pytest.mark.parametrize("address", [None, "", "vsock:2:1", "x"])
def test_without_a_socket_that_can_be_used_nothing_is_told(address: str | None) -> None:
    environment = {WATCHDOG: "1"} if address is None else {SOCKET: address}
    notifier = notifier_of(environment, 7)
    assert not notifier.is_there
    notifier.ready("x")


@pytest.mark.timeout(900)
def test_device_and_server_tell_it(tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = Fleet(tmp_path, tiny_bundle, free_port(), external=False)
    managers = {name: Manager(str(tmp_path / name)) for name in ("server.sock", "device.sock")}
    monkeypatch.setenv(WATCHDOG, "2000000")
    try:
        monkeypatch.setenv(SOCKET, str(tmp_path / "server.sock"))
        server = fleet.stay()
        assert "STATUS=fleet default" in managers["server.sock"].wait_for("WATCHDOG=1")
        monkeypatch.setenv(SOCKET, str(tmp_path / "device.sock"))
        device = fleet.device("pi", 0, stays=True)
        told = managers["device.sock"].wait_for("STATUS=device pi of fleet default")
        assert told[0] == "READY=1"
        assert "WATCHDOG=1" in told
        for process, manager in ((device, managers["device.sock"]), (server, managers["server.sock"])):
            for _ in range(3):
                manager.wait_for("WATCHDOG=1")
            process.popen.send_signal(signal.SIGTERM)
            manager.wait_for("STOPPING=1")
            assert process.popen.wait(120) == 0
    finally:
        fleet.stop()
        for manager in managers.values():
            manager.close()
