"""What cannot become a device's Linux_for_Tegra is refused before its first byte changes, and says what to do."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from card_images import write_wheels
from jetson_desk import Desk, needs_root
from l4t import tree_of, write_l4t

from edge_runtime.errors import ConfigError, StorageError
from server.flash import overlay
from server.flash.device_wheel import requirements
from server.flash.l4t import look_at_l4t

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wheels(tmp_path_factory.mktemp("wheels") / "wheels", [*requirements(), "pip"])


@pytest.fixture
def desk(tmp_path: Path, wheels: Path) -> Desk:
    (tmp_path / "desk").mkdir()
    return Desk(tmp_path / "desk", wheels)


# -- what is refused -----------------------------------------------------------------------------------------------


def empty(l4t: Path) -> None:
    shutil.rmtree(l4t / "rootfs")
    (l4t / "rootfs").mkdir()
    (l4t / "rootfs/README.txt").write_text("extract the sample root file system here\n")


def release(text: str) -> Any:
    return lambda l4t: (l4t / "rootfs/etc/nv_tegra_release").write_text(text)


def other_python(l4t: Path) -> None:
    (l4t / "rootfs/usr/bin/python3.10").rename(l4t / "rootfs/usr/bin/python3.8")


def has_run(l4t: Path) -> None:
    (l4t / "rootfs/var/lib/covey").mkdir()
    (l4t / "rootfs/var/lib/covey/edge.toml").write_text("name = 1\n")


def linked(l4t: Path) -> None:
    (l4t / "rootfs/opt").rmdir()
    (l4t / "rootfs/opt").symlink_to(l4t.parent / "elsewhere")
    (l4t.parent / "elsewhere").mkdir()


SPOILED = {
    "no root file system": (lambda l4t: shutil.rmtree(l4t / "rootfs"), "has no rootfs", "Linux_for_Tegra"),
    "not unpacked": (empty, "no root file system in it, but README.txt", "sudo tar xpf"),
    "no drivers": (lambda l4t: (l4t / "rootfs/etc/nv_tegra_release").unlink(), "nv_tegra_release", "apply_binaries.sh"),
    "older release": (release("# R35 (release), REVISION: 4.1, GCID: 1"), "R35.4.1", "provision ssh"),
    "newer release": (release("# R40 (release), REVISION: 1.0, GCID: 1"), "R40.1.0", "provision ssh"),
    "no release": (release("something else\n"), "names no release: something else", "driver package"),
    "other python": (other_python, "no Python 3.10, which is JetPack 6's, but python3.8", "python3"),
    "a board's own": (has_run, "has run already", "no board has booted"),
    "linked folder": (linked, "is a link", "sample root file system"),
    "no script": (lambda l4t: shutil.rmtree(l4t / "tools"), "l4t_create_default_user.sh is missing", "--no-user"),
}


@needs_root
@pytest.mark.parametrize("name", SPOILED)
def test_what_cannot_become_a_devices_is_refused_before_the_first_byte(desk: Desk, tmp_path: Path, name: str) -> None:
    l4t = write_l4t(tmp_path)
    spoil, said, hint = SPOILED[name]
    spoil(l4t)
    before = tree_of(tmp_path)
    desk.make(l4t, code=StorageError.exit_code if name == "linked folder" else ConfigError.exit_code)
    assert said in desk.said
    assert hint in desk.said
    assert {path: data for path, data in tree_of(tmp_path).items() if not path.startswith("desk")} == {
        path: data for path, data in before.items() if not path.startswith("desk")
    }


def test_a_folder_beside_the_right_one_is_named(tmp_path: Path) -> None:
    l4t = write_l4t(tmp_path)
    for given in (tmp_path, l4t / "rootfs"):
        with pytest.raises(ConfigError, match="has no rootfs") as caught:
            look_at_l4t(given)
        assert caught.value.hint == f"--l4t {l4t}"
    with pytest.raises(ConfigError, match="no such folder"):
        look_at_l4t(tmp_path / "nowhere")


def test_who_is_not_root_is_told_before_anything_is_written_and_may_look(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    l4t = write_l4t(tmp_path)
    before = tree_of(l4t)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    desk.make(l4t, code=ConfigError.exit_code)
    assert "sudo covey flash jetson" in desk.said
    assert "nothing has been written" in desk.said
    looked = desk.flash(l4t, "--dry-run")
    assert looked["written"] is False
    assert any("nv-oem-config.target" in line for line in looked["plan"])
    assert tree_of(l4t) == before


@needs_root
def test_a_root_file_system_that_was_unpacked_without_root_is_refused(desk: Desk, tmp_path: Path) -> None:
    l4t = write_l4t(tmp_path)
    os.chown(l4t / "rootfs/etc/passwd", 1000, 1000)
    desk.make(l4t, code=ConfigError.exit_code)
    assert "unpacked without root: its files belong to user 1000" in desk.said


@needs_root
def test_nvidias_license_is_the_operators_to_accept(desk: Desk, tmp_path: Path) -> None:
    l4t = write_l4t(tmp_path)
    desk.flash(l4t, code=ConfigError.exit_code)
    assert "license" in desk.said
    assert not (l4t / "arguments").exists()


@needs_root
def test_a_script_that_fails_is_told_without_the_password(desk: Desk, tmp_path: Path) -> None:
    l4t = write_l4t(tmp_path)
    (l4t / "fail").touch()
    (desk.folder / "password").write_text("correct-horse\n")
    desk.make(l4t, "--password-file", str(desk.folder / "password"), code=StorageError.exit_code)
    assert "no chroot here" in desk.said
    assert "correct-horse" not in desk.said
    assert (l4t / "arguments").read_text().split("\n")[3] == "correct-horse"
    assert desk.check(l4t, code=ConfigError.exit_code)["device"] is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--execution-providers", "cuda,cpu"), "needs ONNX Runtime with CUDA"),
        (("--execution-providers", "CUDAExecutionProvider"), "CUDAExecutionProvider"),
        (("--data", "/nowhere/rows"), "is no file"),
        (("--user", "No"), "no user name"),
        (("--hostname", "a_b"), "no host name"),
    ],
)
def test_flags_that_cannot_be_meant_are_refused(
    desk: Desk, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    desk.make(write_l4t(tmp_path), *arguments, code=ConfigError.exit_code)
    assert said in desk.said


def test_cuda_without_a_place_is_refused(desk: Desk, tmp_path: Path) -> None:
    l4t = write_l4t(tmp_path)
    words = ["--l4t", str(l4t), "--device", "orin-a", "--no-ssh", "--no-join", "--dry-run", "--onnxruntime-gpu"]
    desk.run("jetson", *words, code=ConfigError.exit_code)
    assert "--extra-index-url" in desk.said


@needs_root
def test_too_little_room_is_told_before_the_first_byte(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    l4t = write_l4t(tmp_path)
    before = tree_of(l4t)
    monkeypatch.setattr(overlay, "SPARE_BYTES", 1 << 60)
    desk.make(l4t, code=StorageError.exit_code)
    assert "make room" in desk.said
    assert tree_of(l4t) == before
