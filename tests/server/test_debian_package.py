"""The Debian package installs in a real Debian 12 and 13, runs on the Python there, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from wheels import changed_wheel

from server.flash.debian import make_package
from server.flash.device_wheel import make_device_wheel
from server.flash.environment import Sources

pytestmark = pytest.mark.slow
RELEASES = {"bookworm": "3.11", "trixie": "3.13"}
LEFT = ("opt/covey", "usr/bin/covey-edge", "usr/lib/systemd/system/covey-edge.service", "var/lib/covey")
AS_COVEY = "cd /; runuser -u covey -- "
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
    _updates_and_goes_back(root, package.name, tmp_path)
    (root / "var/lib/covey/edge.toml").write_text("kept")

    inside(root, "dpkg", "-r", "covey-edge")
    assert not (root / "var/lib/covey/update").exists()
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


def _updates_and_goes_back(root: Path, package: str, folder: Path) -> None:
    """Put another version into the other slot, as a rollout does; the package again is the only version then."""
    wheel, _ = make_device_wheel(folder, "x86_64")
    newer = changed_wheel(wheel, "0.2.0")
    shutil.copy(newer, root / "tmp" / newer.name)
    state = AS_COVEY + "covey-edge update status --root /var/lib/covey/update --format json"
    limits = "--health-timeout 2 --probation 1"
    launcher = f"/usr/bin/python3 -I /opt/covey/launcher.pyz --root /var/lib/covey/update {limits}"
    # Without a configuration a version ends with exit code 3; the launcher has written its state by then.
    start = f"cd /; runuser -u covey -- {launcher} --config /var/lib/covey/edge.toml; test $? -eq 3"
    inside(root, "sh", "-c", start)
    found = json.loads(inside(root, "sh", "-c", state))
    assert (found["current"]["version"], found["current"]["slot"], found["previous"]) == ("0.1.0", "a", None)
    assert found["root"] == "/var/lib/covey/update"
    # Its user installs without a network, pip of the system, or root's files.
    inside(root, "sh", "-c", AS_COVEY + f"covey-edge update install /tmp/{newer.name}")
    assert inside(root, "sh", "-c", "find /var/lib/covey/update ! -user covey") == ""
    inside(root, "sh", "-c", start)  # it is tried twice, does not come up, and the version before runs
    found = json.loads(inside(root, "sh", "-c", state))
    assert (found["current"]["version"], found["outcome"]["result"]) == ("0.1.0", "rolled-back")
    inside(root, "sh", "-c", AS_COVEY + "ln -sfn env-b /var/lib/covey/update/current")
    assert inside(root, "sh", "-c", AS_COVEY + "covey-edge --version").strip() == "covey-edge 0.2.0"
    assert inside(root, "covey-edge", "--version").strip() == "covey-edge 0.1.0"  # root runs root's files alone
    inside(root, "dpkg", "-i", f"/root/{package}")  # an upgrade
    assert inside(root, "sh", "-c", AS_COVEY + "covey-edge --version").strip() == "covey-edge 0.1.0"
    assert sorted(path.name for path in (root / "var/lib/covey/update").iterdir() if path.name != "pip-cache") == [
        *("current", "env-a", "install.lock", "launcher.lock"),
    ]


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
