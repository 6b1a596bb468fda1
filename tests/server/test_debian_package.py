"""The Debian package installs in a real Debian 12 and 13, runs on the Python there, and leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from server.flash.debian import make_package
from server.flash.environment import Sources

pytestmark = pytest.mark.slow
RELEASES = {"bookworm": "3.11", "trixie": "3.13"}
LEFT = ("opt/covey", "usr/bin/covey-edge", "usr/lib/systemd/system/covey-edge.service", "var/lib/covey")
WANTS = "etc/systemd/system/multi-user.target.wants/covey-edge.service"


@pytest.fixture(params=[pytest.param("bookworm", marks=pytest.mark.long), "trixie"])
def release(request: pytest.FixtureRequest) -> str:
    if os.geteuid() != 0:
        pytest.skip("needs root: chroot")
    if shutil.which("mmdebstrap") is None:
        pytest.skip("needs mmdebstrap: apt install mmdebstrap")
    return str(request.param)


def inside(root: Path, *command: str) -> str:
    """Run a command in the root; return what it printed."""
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        ["chroot", str(root), *command], capture_output=True, text=True, check=False, env=environment, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.timeout(1500)
def test_the_package_installs_runs_and_is_removed(release: str, tmp_path: Path) -> None:
    root, python = tmp_path / "root", RELEASES[release]
    made = subprocess.run(
        ["mmdebstrap", "--mode=root", "--variant=minbase", "--include=python3", "--quiet", release, str(root)],
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert made.returncode == 0, made.stderr
    package = make_package(python, "x86_64", Sources(), tmp_path)
    shutil.copy(package, root / "root" / package.name)
    before = _files(root)

    said = inside(root, "dpkg", "-i", f"/root/{package.name}")
    assert "sudo covey-edge setup TOKEN" in said
    assert inside(root, "covey-edge", "--version").strip() == "covey-edge 0.1.0"
    assert "onnxruntime" in inside(root, "sh", "-c", "covey-edge doctor --format json || true")
    assert inside(root, "stat", "-c", "%U %a", "/var/lib/covey").strip() == "covey 750"
    assert os.path.lexists(root / WANTS)
    inside(root, "sh", "-c", "covey-edge setup nonsense; test $? -eq 3")
    inside(root, "dpkg", "-i", f"/root/{package.name}")  # again, over itself
    (root / "var/lib/covey/edge.toml").write_text("kept")

    inside(root, "dpkg", "-r", "covey-edge")
    assert (root / "var/lib/covey/edge.toml").read_text() == "kept"  # the identity is kept until it is purged
    assert not os.path.lexists(root / WANTS)
    inside(root, "dpkg", "-P", "covey-edge")
    assert [path for path in LEFT if os.path.lexists(root / path)] == []
    assert "covey" not in (root / "etc/passwd").read_text()
    assert _files(root) - before <= {
        "etc/subuid-",
        "etc/subgid-",
        "etc/passwd-",
        "etc/group-",
        "etc/shadow-",
        "etc/gshadow-",
    }


def _files(root: Path) -> set[str]:
    """Return the files outside of caches, logs and dpkg's own."""
    left_out = (
        "proc/",
        "sys/",
        "dev/",
        "run/",
        "tmp/",
        "root/",
        "var/lib/dpkg/",
        "var/log/",
        "var/cache/",
        "usr/lib/python3",
    )
    found = (path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_symlink() and path.is_file())
    return {path for path in found if not path.startswith(left_out)}
