"""Slots with a device of a few lines in place of a Python with Covey in it, for tests of the launcher alone.

``env-a/bin/python`` is a script that does what ``env-a/does`` says, a word for each start (the last stays), and that
notes each start in ``starts``. What it does may be changed while the launcher runs.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from edge_runtime.update.launcher_file import write_launcher
from edge_runtime.update.slots import Installed, link_slot, mark_whole, slot_path, slot_python
from edge_runtime.update.state import State, write_state

_DEVICE = r"""#!{python} -I
import json, os, pathlib, signal, sys, time
env = pathlib.Path(__file__).parent.parent
root = env.parent
words = (env / "does").read_text().split()
if "reach" in sys.argv:
    sys.exit(0 if (root / "network").exists() else 7)
with (root / "starts").open("a") as file:
    file.write(f"{{env.name}} {{os.getpid()}}\n")
if words[1:]:  # else it stays as it is: a kill while it is written would leave it empty
    (env / "does").write_text(" ".join(words[1:]))
word = words[0]
pipe = int(os.environ["COVEY_HEALTH_FD"])
def tell(**line):
    os.write(pipe, json.dumps(line).encode() + b"\n")
def end(*_):
    sys.exit(0)
signal.signal(signal.SIGTERM, signal.SIG_IGN if word == "deaf" else end)
if word == "crash":
    tell(stage="started"); tell(error="broken on purpose"); sys.exit(70)
if word == "die":
    os.kill(os.getpid(), signal.SIGSEGV)
if word in ("hang", "deaf"):
    tell(stage="started"); time.sleep(600)
tell(stage="started"); tell(stage="connecting")
if word == "offline" and not (root / "network").exists():
    sys.exit(7)
if word == "waiting" or word == "lost":
    while word == "lost" or not (root / "network").exists():
        time.sleep(0.02)
tell(stage="serving")
if word == "silent":
    time.sleep(600)
if word == "exit3":
    sys.exit(3)
if word == "once":
    sys.exit(0)
while True:
    tell(beat=True)
    time.sleep(0.02)
"""


class FakeSlots:
    """A folder of slots; slot a is accepted and serves."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        self.put("a", "0.1", "serve")
        write_state(root, State("a"))
        link_slot(root, "a")
        write_launcher(root)
        (root / "network").touch()
        (root / "edge.toml").touch()

    def put(self, slot: str, version: str, does: str) -> Installed:
        """Put a version into a slot that does these words."""
        python = slot_python(self.root, slot)
        python.parent.mkdir(parents=True, exist_ok=True)
        python.write_text(_DEVICE.format(python=sys.executable))
        python.chmod(0o755)
        (slot_path(self.root, slot) / "does").write_text(does)
        found = Installed(slot, version, version.encode().hex().ljust(64, "0"))
        mark_whole(self.root, found)
        return found

    def starts(self) -> list[tuple[str, int]]:
        """Return the starts so far: the slot's folder, and the process."""
        path = self.root / "starts"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(name, int(pid)) for name, pid in (line.split() for line in lines)]

    def launch(self, healthy_s: float = 1.0, trial_s: float = 0.3) -> subprocess.Popen[bytes]:
        """Start the launcher's one file, with this Python and nothing of this repository."""
        command = [sys.executable, "-I", str(self.root / "launcher.pyz"), "--config", str(self.root / "edge.toml")]
        command += ["--health-timeout", str(healthy_s), "--probation", str(trial_s)]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        with (self.root / "launcher.log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd="/")

    def log(self) -> str:
        """Return what the launchers have logged."""
        return (self.root / "launcher.log").read_text()


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def stop(launcher: subprocess.Popen[bytes]) -> int:
    """Stop a launcher as a service manager does."""
    launcher.send_signal(signal.SIGTERM)
    return launcher.wait(60)
