"""What fills the launcher's slots on a board: afterwards one version is there and runs, wherever it was interrupted."""

from __future__ import annotations

import fcntl
import json
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from slots import FakeSlots

from edge_runtime.update.launcher import Launcher
from edge_runtime.update.requests import read_request, request_switch
from edge_runtime.update.rules import Limits
from edge_runtime.update.slots import INSTALL_LOCK, Installed, installed, link_slot, linked_slot
from edge_runtime.update.state import State, read_state, write_state
from server.flash.places import BEGIN_SCRIPT, FIRST, FOLDER, HOME, LAUNCHER, SLOTS, launch

FRESH = Installed("a", "0.9", "f" * 64)


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A folder with an environment, as a Debian package has it."""
    folder = tmp_path / "package"
    (folder / "bin").mkdir(parents=True)
    (folder / "lib").mkdir()
    (folder / "bin" / "python").symlink_to(sys.executable)
    (folder / "bin" / "python3").symlink_to("python")
    (folder / "lib" / "code.py").write_text("x = 1\n")
    (folder / "slot.json").write_text(json.dumps({"slot": "a", "version": FRESH.version, "sha256": FRESH.sha256}))
    return folder


def begin(root: Path, source: Path, text: str = BEGIN_SCRIPT) -> subprocess.CompletedProcess[str]:
    """Run the script on a folder of slots of a test."""
    script = text.replace(SLOTS, str(root))
    return subprocess.run(["sh", "-c", script, "begin.sh", str(source)], capture_output=True, text=True, check=False)


def rolled_out(root: Path) -> None:
    """Make slots of which b runs, with a request for a: what a board has after some updates."""
    made = FakeSlots(root)
    found = made.put("b", "0.2", "serve")
    write_state(root, State("b", "a", found.sha256))
    link_slot(root, "b")
    request_switch(root, installed(root)["a"])


def check_fresh(root: Path) -> None:
    assert installed(root) == {"a": FRESH}
    assert (linked_slot(root), read_state(root), read_request(root)) == ("a", None, None)
    assert Launcher(root, [], [], Limits())._next_slot() == "a"
    assert read_state(root) == State("a")
    assert (root / "env-a" / "lib" / "__pycache__").is_dir()


@pytest.mark.parametrize("kind", ["folder", "archive"])
def test_a_fresh_environment_is_the_only_version(tmp_path: Path, environment: Path, kind: str) -> None:
    source = environment
    if kind == "archive":
        source = tmp_path / "env.tar"
        with tarfile.open(source, "w") as tar:
            tar.add(environment, FIRST)
    for root in (tmp_path / "new", tmp_path / "old"):
        if root.name == "old":
            rolled_out(root)
        done = begin(root, source)
        assert done.returncode == 0, done.stderr
        check_fresh(root)


def test_killed_after_any_line_the_same_command_goes_on(tmp_path: Path, environment: Path) -> None:
    lines = BEGIN_SCRIPT.splitlines()
    inside = range(lines.index('if [ -d "$1" ]; then'), lines.index("fi"))
    places = [at for at, line in enumerate(lines) if line and not line.startswith("#") and at not in inside]
    assert len(places) > 15
    for at in places:
        root = tmp_path / str(at)
        rolled_out(root)
        text = "\n".join([*lines[: at + 1], "kill -9 $$", *lines[at + 1 :]])
        assert begin(root, environment, text).returncode == -signal.SIGKILL
        assert installed(root)  # something can run at any time
        done = begin(root, environment)
        assert done.returncode == 0, done.stderr
        check_fresh(root)


def test_what_is_not_whole_changes_nothing(tmp_path: Path, environment: Path) -> None:
    root = tmp_path / "update"
    rolled_out(root)
    before = installed(root)
    (environment / "slot.json").unlink()
    done = begin(root, environment)
    assert done.returncode == 1
    assert "is no environment of Covey" in done.stderr
    assert installed(root) == before
    assert read_request(root) is not None


def test_an_installation_at_work_is_waited_for(tmp_path: Path, environment: Path) -> None:
    root = tmp_path / "update"
    rolled_out(root)
    with (root / INSTALL_LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = begin(root, environment, BEGIN_SCRIPT.replace("-w 600", "-w 0"))
    assert done.returncode == 1
    assert "a version of Covey is being installed" in done.stderr
    assert sorted(installed(root)) == ["a", "b"]


def test_the_launcher_is_roots_and_the_slots_are_where_the_service_may_write() -> None:
    assert Path(SLOTS).is_relative_to(HOME)
    assert Path(LAUNCHER).is_relative_to(FOLDER)
    assert not Path(FOLDER).is_relative_to(HOME)
    words = launch("3.12").split()
    assert words[:3] == ["/usr/bin/python3.12", "-I", LAUNCHER]
    assert words[words.index("--root") + 1] == SLOTS
