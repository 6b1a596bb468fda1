"""Installing a wheel: what is refused before anything is touched, what is taken over, and what a kill leaves."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from repository import ROOT
from slots import FakeSlots

from edge_runtime import cli
from edge_runtime.agent.self_check import load_everything
from edge_runtime.errors import ConfigError, StorageError, UpdateError
from edge_runtime.update import install as install_module
from edge_runtime.update.dependencies import packages_for, requested, take_over
from edge_runtime.update.install import install_wheel
from edge_runtime.update.launcher import Launcher
from edge_runtime.update.requests import read_request, request_rollback, request_switch, update_root
from edge_runtime.update.rules import Limits
from edge_runtime.update.slots import INSTALL_LOCK, clear_slot, installed, linked_slot, locked, slot_path
from edge_runtime.update.state import State, Trial, read_state, write_state
from edge_runtime.update.wheel_file import read_wheel

METADATA = "Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Dist: numpy>=1\n"


@pytest.fixture
def slots(tmp_path: Path) -> FakeSlots:
    return FakeSlots(tmp_path / "update")


def wheel_of(folder: Path, files: Mapping[str, str] | None = None, name: str = "covey", version: str = "0.2") -> Path:
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in (files or {}).items():
            archive.writestr(file, text)
        if files is None or not any(file.endswith("METADATA") for file in files):
            archive.writestr(f"{name}-{version}.dist-info/METADATA", METADATA.format(name=name, version=version))
    return path


# -- wheels -----------------------------------------------------------------------------------------------------------


def test_a_wheel_says_what_it_is(tmp_path: Path) -> None:
    path = wheel_of(tmp_path, {"edge_runtime/x.py": "x = 1\n"})
    wheel = read_wheel(path, hashlib.sha256(path.read_bytes()).hexdigest().upper())
    assert (wheel.version, wheel.requirements) == ("0.2", ("numpy>=1",))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "covey-1.whl", "cannot read"),
        (lambda folder: folder / "covey.zip", "its name does not end with .whl"),
        (lambda folder: wheel_of(folder, name="numpy"), "is a wheel of numpy, not of Covey"),
        (
            lambda folder: wheel_of(folder, {"a/b.dist-info/METADATA": "Name: covey\nVersion: 1\n"}),
            "it has no METADATA",
        ),
        (lambda folder: wheel_of(folder, {"b.dist-info/METADATA": "Name: covey\n"}), "is a wheel of covey"),
        (lambda folder: wheel_of(folder, {"b.dist-info/METADATA": "x" * (2 << 20)}), "METADATA is too long"),
    ],
)
def test_what_is_no_wheel_of_covey_is_refused(tmp_path: Path, make: object, message: str) -> None:
    with pytest.raises(UpdateError, match=message):
        read_wheel(make(tmp_path), None)  # type: ignore[operator]


def test_a_wheel_is_refused_for_its_hash_and_for_each_kind_of_damage(tmp_path: Path) -> None:
    path = wheel_of(tmp_path, {"edge_runtime/x.py": "x = 1\n" * 100})
    with pytest.raises(UpdateError, match="is wanted"):
        read_wheel(path, "0" * 64)
    whole = path.read_bytes()
    sha256 = hashlib.sha256(whole).hexdigest()
    for damaged in (b"", whole[:50], whole[:-30], b"x" * 300, bytes(len(whole))):
        path.write_bytes(damaged)
        with pytest.raises(UpdateError, match="is damaged"):
            read_wheel(path, None)
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(UpdateError):
            read_wheel(path, sha256)


# -- what is taken over -----------------------------------------------------------------------------------------------


def package(folder: Path, name: str, requires: str = "", *, named: bool = False, files: tuple[str, ...] = ()) -> None:
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{requires}")
    if named:
        (info / "REQUESTED").touch()
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(f"of {name}\n")
    record = [f"{path.relative_to(folder)},," for path in sorted(info.iterdir())]
    for file in files:
        found = hashlib.sha256((folder / file).read_bytes()).digest()
        record.append(f"{file},sha256={base64.urlsafe_b64encode(found).rstrip(b'=').decode()},5")
    (info / "RECORD").write_text("\n".join([*record, f"{info.name}/RECORD,,", "../../bin/tool,,", ""]))


def test_what_a_wheel_needs_is_found_with_what_that_needs_and_nothing_more(tmp_path: Path) -> None:
    package(tmp_path, "pip")
    package(tmp_path, "Alpha_One", 'Requires-Dist: beta[fast]>=1\nRequires-Dist: never; extra == "dev"\n')
    package(tmp_path, "beta", 'Requires-Dist: gamma; extra == "fast"\nRequires-Dist: slow; extra == "slow"\n')
    for name in ("gamma", "slow", "never", "torch"):
        package(tmp_path, name, named=name == "torch")
    found = packages_for(["alpha-one (>=2); python_version > '3'", "missing"], [str(tmp_path)])
    assert [each.name for each in found] == ["alpha-one", "beta", "gamma", "pip"]
    assert requested([str(tmp_path)]) == ["torch"]


def test_a_package_is_linked_whole_or_not_at_all(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    package(source, "alpha", files=("alpha/__init__.py", "alpha/deep/data.txt"))
    (found,) = packages_for(["alpha"], [str(source)])
    assert take_over(found, target)
    assert (target / "alpha" / "deep" / "data.txt").samefile(source / "alpha" / "deep" / "data.txt")
    assert not (tmp_path / "bin").exists()
    assert (target / "alpha-1.0.dist-info" / "RECORD").is_file()
    for damage in ("altered", "lost"):
        other, copy = tmp_path / f"target-{damage}", tmp_path / damage
        shutil.copytree(source, copy)
        if damage == "lost":
            (copy / "alpha" / "deep" / "data.txt").unlink()
        else:
            (copy / "alpha" / "deep" / "data.txt").write_text("of alphb\n")
        (hurt,) = packages_for(["alpha"], [str(copy)])
        assert not take_over(hurt, other)
        assert not any(path.is_file() for path in other.rglob("*"))


def test_a_disk_without_links_gets_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path / "source", "alpha", files=("alpha/__init__.py",))
    (found,) = packages_for(["alpha"], [str(tmp_path / "source")])

    def refuse(*_paths: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    assert take_over(found, tmp_path / "target")
    assert (tmp_path / "target" / "alpha" / "__init__.py").stat().st_nlink == 1


# -- what is refused before anything is touched -----------------------------------------------------------------------


def test_where_nothing_is_set_up_the_installation_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wheel = wheel_of(tmp_path)
    for command in (["install", str(wheel)], ["status"], ["rollback"]):
        assert cli.main(["update", *command, "--root", str(tmp_path)]) == 3
        assert "covey-edge update setup WHEEL" in capsys.readouterr().err
        assert cli.main(["update", *command]) == 3
        assert "runs from no slot" in capsys.readouterr().err
    assert update_root({}) is None
    assert update_root({"COVEY_UPDATE_ROOT": "/x"}) == Path("/x")


def test_nothing_is_installed_in_a_trial_or_while_a_request_waits(slots: FakeSlots, tmp_path: Path) -> None:
    wheel, found = wheel_of(tmp_path), slots.put("b", "0.2", "serve")
    request_switch(slots.root, found)
    with pytest.raises(UpdateError, match="has not taken it"):
        install_wheel(wheel, None, slots.root)
    write_state(slots.root, State("b", trial=Trial("update", "a")))
    with pytest.raises(UpdateError, match="on trial"):
        install_wheel(wheel, None, slots.root)
    write_state(slots.root, State("a", request=str(read_request(slots.root) and read_request(slots.root).id)))  # type: ignore[union-attr]
    with locked(slots.root, INSTALL_LOCK, "", ""), pytest.raises(StorageError, match="already being installed"):
        install_wheel(wheel, None, slots.root)
    assert installed(slots.root)["b"] == found


def test_a_disk_with_too_little_space_is_said_and_the_way_back_stays(
    slots: FakeSlots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = slots.put("b", "0.1.1", "serve")
    write_state(slots.root, State("a", "b", found.sha256))

    def nearly_full(_path: Path) -> object:
        return shutil._ntuple_diskusage(10**9, 10**9 - 10**6, 10**6)  # type: ignore[attr-defined]

    monkeypatch.setattr(install_module.shutil, "disk_usage", nearly_full)
    with pytest.raises(StorageError, match=r"needs \d+ MB, .* has 1 MB free"):
        install_wheel(wheel_of(tmp_path), None, slots.root)
    assert request_rollback(slots.root)


def test_a_slot_that_holds_another_version_is_no_way_back(slots: FakeSlots) -> None:
    found = slots.put("b", "0.2", "serve")
    write_state(slots.root, State("a", "b", found.sha256))
    slots.put("b", "0.3", "serve")
    with pytest.raises(UpdateError, match="no version before"):
        request_rollback(slots.root)


def test_an_installation_that_fails_leaves_an_empty_slot_and_the_version_that_runs(
    slots: FakeSlots, tmp_path: Path
) -> None:
    """The slot's stand-in for Python makes no environment."""
    (slot_path(slots.root, "a") / "does").write_text("crash")
    with pytest.raises(UpdateError, match="cannot make a virtual environment"):
        install_wheel(wheel_of(tmp_path), None, slots.root)
    assert list(installed(slots.root)) == ["a"]
    assert not slot_path(slots.root, "b").exists()
    with pytest.raises(UpdateError, match="no new version is installed"):
        request_switch(slots.root)


# -- killed at any line -----------------------------------------------------------------------------------------------


def killed(made: FakeSlots, folder: Path, what: str, step: int) -> Iterator[Path]:
    """Yield folders of slots, each of a process that was killed at another line."""
    copies = 200
    for number in range(copies):
        shutil.copytree(made.root, folder / str(number), symlinks=True)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])}
    command = [sys.executable, str(ROOT / "tests" / "support" / "update_kills.py"), str(folder), str(step), what]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    total, *kills = done.stdout.split("\n")[:-1]
    assert len(kills) > 20
    assert int(total) < copies * step  # every part of it was looked at
    for number, kill in enumerate(kills, 1):
        assert kill.split()[1] == str(-signal.SIGKILL)
        yield folder / str(number)


def test_a_switch_that_is_killed_at_any_line_leaves_the_old_version_or_the_new(tmp_path: Path) -> None:
    made = FakeSlots(tmp_path / "made")
    request_switch(made.root, made.put("b", "0.2", "serve"))
    seen = set()
    for root in killed(made, tmp_path / "all", "switch", 3):
        state = read_state(root)
        assert state is not None
        seen.add(state.current)
        slot = Launcher(root, [], [], Limits())._next_slot()
        after = read_state(root)
        assert after is not None
        assert slot == after.current == linked_slot(root) == "b"
        assert after.trial is not None
        assert after.trial.attempts == (1 if state.current == "a" else 2)  # a start that was cut off counts
        assert read_request(root) is None
    assert seen == {"a", "b"}


@pytest.mark.parametrize("what", ["clear", "mark"])
def test_a_slot_that_lacks_a_file_never_counts_as_whole(tmp_path: Path, what: str) -> None:
    """Emptying a slot begins with its marker, and filling it ends with it, wherever it is killed."""
    made = FakeSlots(tmp_path / "made")
    made.put("b", "0.2", "serve")
    names = [f"{number}/file" for number in range(8)]  # a folder has no order: some come before the marker
    for name in names:
        path = slot_path(made.root, "b") / name
        path.parent.mkdir(parents=True)
        path.touch()
    if what == "mark":
        (slot_path(made.root, "b") / "slot.json").unlink()
    seen = set()
    for root in killed(made, tmp_path / "all", what, 1 if what == "mark" else 3):
        whole = "b" in installed(root)
        seen.add(whole)
        if whole:
            assert all((slot_path(root, "b") / name).exists() for name in names)
        assert Launcher(root, [], [], Limits())._next_slot() == "a"
        clear_slot(root, "b")
        assert not slot_path(root, "b").exists()
    assert seen == {True, False}


def test_a_disk_that_cannot_be_written_starts_the_version_that_works(
    slots: FakeSlots, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attempts cannot be counted: the trial waits, and a version that is accepted runs nevertheless."""

    def full(*_: object) -> None:
        raise StorageError("disk full", "")

    slots.put("b", "0.2", "crash")
    write_state(slots.root, State("b", trial=Trial("update", "a", 1)))
    monkeypatch.setattr("edge_runtime.update.launcher.write_state", full)
    launcher = Launcher(slots.root, [], [], Limits())
    assert [launcher._next_slot() for _ in range(3)] == ["a"] * 3
    assert read_state(slots.root) == State("b", trial=Trial("update", "a", 1))
    monkeypatch.undo()
    assert Launcher(slots.root, [], [], Limits())._next_slot() == "b"
    write_state(slots.root, State("a"))
    monkeypatch.setattr("edge_runtime.update.launcher.write_state", full)
    assert Launcher(slots.root, [], [], Limits())._next_slot() == "a"


def test_on_a_full_disk_a_request_does_not_stop_the_device(slots: FakeSlots, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise StorageError("disk full", "")

    request_switch(slots.root, slots.put("b", "0.2", "serve"))
    launcher = Launcher(slots.root, [], [], Limits())
    assert launcher._is_asked()
    monkeypatch.setattr("edge_runtime.update.launcher.write_state", full)
    assert not launcher._is_asked()


def test_the_status_says_what_runs_and_what_waits(slots: FakeSlots, capsys: pytest.CaptureFixture[str]) -> None:
    def status() -> dict[str, object]:
        assert cli.main(["update", "status", "--root", str(slots.root), "--format", "json"]) == 0
        found: dict[str, object] = json.loads(capsys.readouterr().out)
        return found

    assert status()["current"] == {"slot": "a", "version": "0.1", "sha256": slots.put("a", "0.1", "serve").sha256}
    found = slots.put("b", "0.2", "serve")
    assert (status()["previous"], status()["request_waits"]) == (None, False)
    request_switch(slots.root, found)
    assert (status()["request_waits"], status()["launcher_runs"]) == (True, False)
    Launcher(slots.root, [], [], Limits())._next_slot()
    waiting = status()
    assert (waiting["on_trial"], waiting["attempts"], waiting["request_waits"]) == (True, 1, False)
    assert cli.main(["update", "rollback", "--root", str(slots.root)]) == 0
    assert "goes back when it is started" in capsys.readouterr().out
    assert Launcher(slots.root, [], [], Limits())._next_slot() == "a"
    assert cli.main(["update", "status", "--root", str(slots.root)]) == 0
    assert "rolled-back: the owner asked for the version before" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["setup", "install", "status", "rollback", "check", "reach"])
def test_each_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["update", command, "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "--format" in said
    assert ("Example: covey-edge update" in said) == (command not in ("check", "reach"))


def test_a_check_finds_a_module_that_does_not_load(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert load_everything() > 100
    monkeypatch.setitem(sys.modules, "edge_runtime.agent.inbox", None)
    with pytest.raises(ConfigError, match=r"edge_runtime\.agent\.inbox does not load"):
        load_everything()
