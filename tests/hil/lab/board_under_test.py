"""A board that tests run commands on and take the power from, whatever it is wired to. Nothing here needs labgrid."""

from __future__ import annotations

import base64
import json
import shlex
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

HOME, SERVICE = "/var/lib/covey", "covey-edge.service"
_LINE = 700
"""Characters of a line that is typed at a terminal, which takes no more than 4,096."""
PATIENT: dict[str, Any] = {"accept_s": 240.0, "deadline_s": 600.0, "max_attempts": 1000, "batch_size": 4}
"""Of every job: a board may boot in mid-round, and an emulated one takes its time."""


class Wires(Protocol):
    """What a strategy of labgrid must offer: see strategies.py."""

    is_emulated: bool

    def reach(self, ports: Sequence[int]) -> str:
        """Let the board reach ports of this machine; return this machine's name for the board."""

    def run(self, command: str, timeout_s: float) -> tuple[int, str]:
        """Run a command line as root; return its exit code and what it printed."""

    def power_on(self, clock: str | None = None) -> None:
        """Switch it on and wait for a shell; its clock then says ``clock``, as ``2020-01-01T00:00:00``."""

    def power_off(self) -> None:
        """Take its power."""

    def keep(self, name: str) -> bool:
        """Keep its state under a name; False: this board has no snapshots."""

    def go_back(self, name: str) -> None:
        """Go back to a kept state."""


@dataclass
class BoardUnderTest:
    """A board and its device of a fleet.

    Attributes:
        wires: the board's power and its shell.
        name: the device's name in its fleet.
    """

    wires: Wires
    name: str

    def try_run(self, command: str, timeout_s: float = 120.0) -> tuple[int, str]:
        """Run a command line as root; return its exit code and what it printed."""
        return self.wires.run(command, timeout_s)

    def run(self, command: str, timeout_s: float = 120.0) -> str:
        """Run a command line as root that must succeed; return what it printed, without the last line's end."""
        code, text = self.try_run(command, timeout_s)
        assert code == 0, f"{command!r} ends with {code}: {text}"
        return text.strip()

    def covey_edge(self, *words: str, timeout_s: float = 300.0) -> dict[str, Any]:
        """Run ``covey-edge`` as the service's user; return the object of its last line."""
        said = "2>/tmp/covey-edge.err || (code=$?; cat /tmp/covey-edge.err; exit $code)"
        line = f"cd {HOME} && runuser -u covey -- covey-edge {shlex.join(words)} --format json {said}"
        answer: dict[str, Any] = json.loads(self.run(line, timeout_s).splitlines()[-1])
        return answer

    def wait_until(self, command: str, what: str, timeout_s: float = 300.0) -> str:
        """Run a command line on the board, again and again, until it succeeds; return what it printed."""
        deadline = time.monotonic() + timeout_s
        while True:
            code, text = self.try_run(command)
            if code == 0:
                return text.strip()
            assert time.monotonic() < deadline, f"no {what} in {timeout_s:.0f} s; the last lines: {self.log()}"

    def wait_training(self, job: str, timeout_s: float = 300.0) -> None:
        """Wait until the device is in mid-round: it has begun a plan of a job, and then computed for a second.

        What the journal says can be seen before it is on the disk; once the device computes, it is.
        """
        begun = f'grep -q \'"begun":{{"job":"{job}"\' {HOME}/covey-state/journal.json'
        what = f"round of {job} that is being trained"
        used = f"$(awk '/^usage_usec/ {{print $2}}' /sys/fs/cgroup/system.slice/{SERVICE}/cpu.stat)"
        before = self.wait_until(f"{begun} && echo {used}", what, timeout_s).splitlines()[-1]
        self.wait_until(f"test $(({used} - {before})) -gt 1000000", what, timeout_s)
        self.run(begun)

    def write(self, path: str, data: bytes, owner: str = "covey") -> None:
        """Write a small file, line by line through the shell."""
        text = base64.b64encode(data).decode()
        self.run(f": > {path}.b64")
        for start in range(0, len(text), _LINE):
            self.run(f"echo {text[start : start + _LINE]} >> {path}.b64")
        self.run(f"base64 -d {path}.b64 > {path} && rm {path}.b64 && chown {owner}: {path} && chmod 600 {path}")

    def service(self, verb: str) -> None:
        """Start, stop or restart Covey's service."""
        self.run(f"systemctl {verb} {SERVICE}", 300.0)

    def is_active(self) -> bool:
        """Whether the service runs."""
        return self.try_run(f"systemctl is-active --quiet {SERVICE}")[0] == 0

    def main_pid(self) -> int:
        """Return the process of the service; 0: none."""
        return int(self.run(f"systemctl show -p MainPID --value {SERVICE}"))

    def peak_rss_mb(self) -> float:
        """Return the most memory in MB that a process of the service has had: the device's, the launcher's child."""
        group = self.run(f"systemctl show -p ControlGroup --value {SERVICE}")
        statuses = f"$(sed 's|.*|/proc/&/status|' /sys/fs/cgroup{group}/cgroup.procs)"
        kilobytes = self.run(f"awk '/VmHWM/ && $2 > most {{most = $2}} END {{print most}}' {statuses}")
        return int(kilobytes) / 1e3

    def adapter_hash(self, sha256: str) -> str:
        """Return the hash of an adapter's bytes on the board, computed there; empty: it has none of this name."""
        path = f"{HOME}/covey-state/adapters/{sha256}.bin"
        return self.run(f"test ! -e {path} || sha256sum {path}").partition(" ")[0]

    def set_clock(self) -> None:
        """Set the board's clock to this machine's time."""
        self.run(f"date -u -s @{int(time.time())} >/dev/null")

    def log(self, lines: int = 40) -> str:
        """Return the last lines of the service's log."""
        return self.try_run(f"journalctl -u {SERVICE} -n {lines} --no-pager -o cat")[1]
