"""A board that has joined a server of this run, put back in order before each test."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from fleets import wait_for
from tiny_models import reviews, write_rows

from tests.hil.lab.board_under_test import HOME, BoardUnderTest
from tests.hil.lab.fleet_of_boards import FleetOfBoards

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.hil.lab.budgets import Budgets

_ROWS, _JOINED = "data/lab-rows.jsonl", "joined"


@dataclass
class Lab:
    """What a test on a board has.

    Attributes:
        board: the board.
        fleet: the server that it has joined, and its processes.
        budgets: what is measured goes there.
        steps: steps of a round: it must take some seconds, to be interrupted.
        host: this machine's name for the board.
    """

    board: BoardUnderTest
    fleet: FleetOfBoards
    budgets: Budgets
    steps: int
    host: str
    _has_snapshot: bool = False
    _is_clean: bool = False
    _reference: str | None = None
    _jobs: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The device's name."""
        return self.board.name

    def set_up(self) -> None:
        """Switch the board on, let it join, and keep this state where the board has snapshots."""
        self.fleet.name_for_boards(self.host)
        self.fleet.begin()
        self.board.wires.power_on()
        self.board.set_clock()
        self.board.run(f"install -d -o covey -g covey -m 750 {HOME}/data")
        rows = self.fleet.root / "lab-rows.jsonl"
        write_rows(reviews(24, seed=1), rows)
        self.board.write(f"{HOME}/{_ROWS}", rows.read_bytes())
        self.board.write("/root/token", self.fleet.token(self.name, self.host).encode(), owner="root")
        self.board.run(f"covey-edge setup --force --token-file /root/token --data {_ROWS}", 900.0)
        self.board.run("rm /root/token")
        self.fleet.wait_state(self.name, "online")
        self.board.service("stop")  # a snapshot cannot keep its connections
        self.board.run("sync")
        self.fleet.end()
        self.fleet.keep()
        self._has_snapshot = self.board.wires.keep(_JOINED)
        self.fleet.begin()
        self.board.service("start")
        self.fleet.wait_state(self.name, "online")
        self._is_clean = True

    def settle(self) -> None:
        """Put everything in order, if the test before has not: from the snapshot, or by starting it all again."""
        if not self._is_clean:
            self._put_in_order()
        self._is_clean = False

    def left_clean(self) -> None:
        """Say, as the last thing in a test, that it has left the device online and no job open."""
        self._is_clean = True

    def _put_in_order(self) -> None:
        wires = self.board.wires
        if self._has_snapshot:
            # A device that is as it was before, at a server that is not, would be a copied card.
            self.fleet.go_back()
            wires.go_back(_JOINED)
            self._jobs.clear()
        else:
            self.fleet.end()
            wires.power_off()
            wires.power_on()
            self.board.run(f"rm -f {HOME}/fill; timedatectl set-ntp true || true")
        self.fleet.begin()
        self.board.set_clock()
        for job in self._jobs:
            if self.fleet.covey("job", "show", job)["state"] not in ("finished", "failed", "stopped"):
                self.fleet.covey("job", "stop", job)
        self.board.service("restart")
        self.fleet.wait_state(self.name, "online")

    def order(self, job: str) -> None:
        """Submit a job; all of a run end on the same bits, whatever happens to the board on the way."""
        self._jobs.append(job)
        self.fleet.order(job, self.steps)

    def finish(self, job: str) -> str:
        """Wait for a job's end; the board then has the server's adapter. Return its hash."""
        sha256 = str(self.fleet.finish(job)["adapter_sha256"])
        self.board.wait_until(f"test -e {HOME}/covey-state/adapters/{sha256}.bin", "final adapter on the board")
        assert self.board.adapter_hash(sha256) == sha256
        return sha256

    def reference(self) -> str:
        """Return the hash on which an undisturbed job ends; it is run where none has been."""
        if self._reference is None:
            self.order("undisturbed")
            self._reference = self.finish("undisturbed")
        return self._reference

    def cut_power_and_boot(self, clock: str | None = None) -> float:
        """Take the power, and give it again; return the time at which it came, in seconds since 1970."""
        self.board.wires.power_off()
        began = time.time()
        self.board.wires.power_on(clock)
        return began

    def wait(self, condition: Callable[[], Any], what: str, timeout_s: float = 300.0) -> Any:
        """Return the first true value of a condition."""
        return wait_for(condition, what, timeout_s)

    def wait_birth(self, after: float) -> float:
        """Wait until the server has heard of the device after a time; return when, in seconds since 1970."""

        def born() -> float | None:
            device = self.fleet.device(self.name)
            seen = datetime.fromisoformat(device["last_seen"]).timestamp()
            return seen if seen > after and device["state"] == "online" else None

        return float(self.wait(born, "birth"))

    def lines_in_log(self, pattern: str) -> int:
        """Return how many lines of the service's log have a pattern, from all boots that the board remembers."""
        command = f"journalctl -u covey-edge -o cat --no-pager | grep -c -- '{pattern}' || true"
        return int(self.board.run(command).splitlines()[-1])

    def wait_logged(self, pattern: str, before: int, timeout_s: float = 300.0) -> None:
        """Wait until the service's log has more lines of a pattern than before."""
        command = f"test $(journalctl -u covey-edge -o cat --no-pager | grep -c -- '{pattern}') -gt {before}"
        self.board.wait_until(command, f"line {pattern!r} in the log", timeout_s)
