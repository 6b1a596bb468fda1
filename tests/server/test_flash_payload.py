"""What a card starts: its units hold up nothing of the system, and Python's caches on it are used as they are."""

from __future__ import annotations

import compileall
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from card_images import write_wheels

from server.flash.device_wheel import requirements
from server.flash.environment import Environment, Sources, make_environment, unpack_environment
from server.flash.first_boot import Found, Settings
from server.flash.payload import SERVICES, SETUP, UNITS, Payload, edge_unit, root_files
from server.flash.places import LAUNCHER

FOUND = Found("Debian", "cloud-init", "", "3.11", "/boot/firmware", "", ())
SETTINGS = Settings("pi-a", "pi", (), None, None, "covey-1")
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def texts(folder: Path) -> dict[str, str]:
    made = Environment(folder / "env.tar", (), 0, has_kernel=False, short_aligned=())
    files = root_files(FOUND, SETTINGS, Payload("pi-a", "token", made))
    return {file.path: file.data.decode() for file in files if isinstance(file.data, bytes) and file.path != LAUNCHER}


def test_nothing_that_multi_user_starts_is_waited_for_by_it(tmp_path: Path) -> None:
    """A target comes after services with default dependencies that it wants, and cloud-init's end after the target."""
    written = texts(tmp_path)
    for name in SERVICES:
        lines = written[f"{UNITS}/{name}"].splitlines()
        assert "DefaultDependencies=no" in lines
        assert "Requires=sysinit.target" in lines  # what the default would have given
        assert "Conflicts=shutdown.target" in lines


def test_the_service_starts_also_where_the_first_attempt_to_join_failed(tmp_path: Path) -> None:
    """systemd drops the start of what requires a unit that failed, and does not come back to it."""
    lines = texts(tmp_path)[SETUP].splitlines()
    start = next(at for at, line in enumerate(lines) if line.startswith(f"systemctl start --no-block {SERVICES[1]}"))
    assert start > lines.index('touch "$folder/set-up"')


def test_the_service_is_the_launcher_and_may_write_where_updates_go() -> None:
    """A stop reaches the device through the launcher, in which a round is put away; both may speak to systemd."""
    for needs_setup in (True, False):
        lines = edge_unit("3.11", "80%", needs_setup=needs_setup).splitlines()
        (start,) = (line for line in lines if line.startswith("ExecStart="))
        assert start == (
            "ExecStart=/usr/bin/python3.11 -I /opt/covey/launcher.pyz --root /var/lib/covey/update "
            "--config /var/lib/covey/edge.toml"
        )
        wanted = {"KillMode=mixed", "TimeoutStopSec=90", "NotifyAccess=all", "ReadWritePaths=/var/lib/covey"}
        assert wanted <= set(lines)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze: apt install systemd")
def test_systemd_reads_the_unit(tmp_path: Path) -> None:
    if not (python := Path("/usr/bin/python3")).exists():
        pytest.skip("needs the system's Python: apt install python3")
    version = python.resolve().name.removeprefix("python")
    for needs_setup in (True, False):
        unit = tmp_path / SERVICES[1]
        text = edge_unit(version, "80%", needs_setup=needs_setup)
        unit.write_text(text.replace(SERVICES[0], "sysinit.target"))  # the set-up's own unit is not here
        done = subprocess.run(["systemd-analyze", "verify", str(unit)], check=False, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_caches_of_python_are_valid_on_the_board(tmp_path: Path) -> None:
    wheels = write_wheels(tmp_path / "wheels", [*requirements(), "pip"])
    made = make_environment(PYTHON, Sources(wheels), tmp_path / "env.tar", compiled=True)
    unpack_environment(made.archive, tmp_path / "board")
    caches = sorted((tmp_path / "board").rglob("*.pyc"))
    assert len(caches) > 50
    before = {path: (path.read_bytes(), path.stat().st_mtime) for path in caches}
    assert compileall.compile_dir(tmp_path / "board", quiet=2)  # what the card's set-up does
    assert {path: (path.read_bytes(), path.stat().st_mtime) for path in caches} == before
    assert sorted((tmp_path / "board").rglob("*.pyc")) == caches
    other = make_environment("3.10" if PYTHON != "3.10" else "3.11", Sources(wheels), tmp_path / "b.tar", compiled=True)
    with tarfile.open(other.archive) as tar:
        assert not any(name.endswith(".pyc") for name in tar.getnames())
