"""An installation on a board: what it takes of the disk is counted as it is, and systemd sees that it gets on."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from slots import FakeSlots

from edge_runtime import cli
from edge_runtime.errors import StorageError, UpdateError
from edge_runtime.notify import Notifier
from edge_runtime.update import install as install_module
from edge_runtime.update.dependencies import Package, can_link
from edge_runtime.update.install import _check_space, _run
from edge_runtime.update.wheel_file import Wheel

NOBODY = 65534
_FILE_BYTES = 1 << 30


def package_in(folder: Path) -> Package:
    """Return a package of one file, which takes a gigabyte and no disk."""
    folder.mkdir(parents=True)
    with (folder / "large.so").open("wb") as file:
        file.truncate(_FILE_BYTES)
    return Package("large", "1", (("large.so", None),), folder)


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that other users may look into."""
    with tempfile.TemporaryDirectory(prefix="covey-links-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


def test_what_cannot_be_linked_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package, root = package_in(tmp_path / "site"), tmp_path / "update"
    root.mkdir()
    wheel = Wheel(tmp_path / "covey.whl", "0.2", "0" * 64, 1000, ())
    monkeypatch.setattr(
        install_module.shutil,
        "disk_usage",
        lambda _path: shutil._ntuple_diskusage(10**10, 10**10 - 10**9, 10**9),  # type: ignore[attr-defined]
    )
    _check_space(wheel, root, "b", [package])
    assert list(root.iterdir()) == []

    def refuse(*_paths: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(StorageError, match=r"needs 11\d\d MB, .* has 1000 MB free"):
        _check_space(wheel, root, "b", [package])


def test_files_of_another_user_are_not_linked(shared: Path) -> None:
    """fs.protected_hardlinks, which Debian and Ubuntu set: packages of root cost the service's user their size."""
    protects = Path("/proc/sys/fs/protected_hardlinks")
    if os.geteuid() != 0 or not protects.exists() or protects.read_text().strip() != "1":
        pytest.skip("needs root, and a kernel with fs.protected_hardlinks = 1")
    package, root = package_in(shared / "site"), shared / "update"
    root.mkdir()
    shutil.chown(root, NOBODY)
    assert can_link(package, root)
    os.seteuid(NOBODY)
    try:
        assert not can_link(package, root)
    finally:
        os.seteuid(0)
    shutil.chown(package.folder / "large.so", NOBODY)
    os.seteuid(NOBODY)
    try:
        assert can_link(package, root)
    finally:
        os.seteuid(0)


def test_systemd_sees_that_a_long_installation_gets_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that is watched only waits meanwhile."""
    monkeypatch.setattr(install_module, "_WAKE_S", 0.05)
    heard: list[bytes] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        reader = threading.Thread(target=lambda: heard.extend(iter(lambda: systemd.recv(100), b"END")))
        reader.start()
        notifier = Notifier(str(tmp_path / "notify"), 0.8, is_whole=False)
        notifier.watch()
        done = _run([sys.executable, "-c", "import time; time.sleep(3); print('done')"], 600.0, "installing")
        notifier.stopping()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
            end.sendto(b"END", str(tmp_path / "notify"))
        reader.join()
    assert (done.returncode, done.stdout) == (0, "done\n")
    assert heard.count(b"WATCHDOG=1") > 3


def test_an_installation_that_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install_module, "_WAKE_S", 0.05)
    with pytest.raises(UpdateError, match="installing did not end in 0 s"):
        _run([sys.executable, "-c", "import time; time.sleep(600)"], 0.3, "installing")


def test_the_slots_are_found_through_the_link_to_the_one_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the Debian package's command starts it."""
    slots = FakeSlots(tmp_path / "update")
    for prefix in (slots.root / "current", slots.root / "env-a"):
        monkeypatch.setattr(sys, "prefix", str(prefix))
        assert cli.main(["update", "status", "--format", "json"]) == 0
        assert f'"root": "{slots.root}"' in capsys.readouterr().out.replace('":"', '": "')
