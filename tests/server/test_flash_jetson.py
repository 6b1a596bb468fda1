"""An unpacked Linux_for_Tegra becomes a device's, and is read back; what cannot become one is refused before."""

from __future__ import annotations

import functools
import http.server
import io
import json
import os
import shutil
import subprocess
import tarfile
import threading
from typing import TYPE_CHECKING, Any

import pytest
import tomllib
from card_images import write_wheels
from jetson_desk import KEY, Desk, make, needs_root
from l4t import RELEASES, tree_of, write_gpu_wheel, write_index, write_l4t

from edge_runtime.errors import ConfigError, NetworkError, StorageError
from server.flash import overlay, payload
from server.flash.device_wheel import requirements
from server.flash.environment import Sources, make_environment
from server.flash.jetson import check_jetson

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from server.flash.environment import Environment


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wheels(tmp_path_factory.mktemp("wheels") / "wheels", [*requirements(), "pip"])


@pytest.fixture(scope="module")
def environment(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return make_environment("3.10", Sources(wheels), tmp_path_factory.mktemp("environment") / "env.tar")


@pytest.fixture
def desk(tmp_path: Path, wheels: Path) -> Desk:
    (tmp_path / "desk").mkdir()
    return Desk(tmp_path / "desk", wheels)


@needs_root
@pytest.mark.parametrize("python", sorted(RELEASES))
def test_a_linux_for_tegra_becomes_a_devices_and_is_read_back(desk: Desk, tmp_path: Path, python: str) -> None:
    l4t = write_l4t(tmp_path, python)
    made, said = desk.make(l4t), desk.said
    rootfs = l4t / "rootfs"
    found = desk.check(l4t)
    assert found["problems"] == []
    assert made == {"l4t": str(l4t), "written": True, **found}
    assert (found["device"], found["hostname"], found["python"]) == ("orin-a", "orin-a", python)
    assert found["server_url"] == "https://covey.example:8443"
    arguments = (l4t / "arguments").read_text().split("\n")
    assert arguments[:3] == ["-u", "covey-admin", "-p"]
    assert arguments[4:7] == ["-n", "orin-a", "--accept-license"]
    assert f"password of covey-admin: {arguments[3]}" in said
    keys = rootfs / "home/covey-admin/.ssh/authorized_keys"
    assert keys.read_text() == KEY + "\n"
    assert (keys.stat().st_mode & 0o777, keys.stat().st_uid) == (0o600, 1000)
    assert (rootfs / "etc/hostname").read_text() == "orin-a\n"
    assert (rootfs / "etc/hosts").read_text() == "127.0.0.1 localhost\n127.0.1.1 orin-a\n"
    token = rootfs / "opt/covey/join-token"
    assert (token.stat().st_mode & 0o777, token.stat().st_uid) == (0o600, 0)
    wants = rootfs / "etc/systemd/system/multi-user.target.wants/covey-edge.service"
    assert str(wants.readlink()) == "/etc/systemd/system/covey-edge.service"
    with tarfile.open(rootfs / "opt/covey/env.tar") as tar:
        names = tar.getnames()
    assert f"env-a/lib/python{python}/site-packages/edge_runtime/agent/agent.py" in names
    assert not any("/server/" in name or "/export/" in name for name in names)
    assert sorted(path.name for path in l4t.iterdir()) == ["arguments", "rootfs", "tools"]  # nothing is left over


@needs_root
def test_making_it_again_changes_only_the_token_and_another_name_replaces_it(
    tmp_path: Path, environment: Environment
) -> None:
    l4t = write_l4t(tmp_path)
    make(l4t, environment)
    first = tree_of(l4t / "rootfs")
    make(l4t, environment)
    again = tree_of(l4t / "rootfs")
    assert {name for name in first if first[name] != again.get(name)} == {"opt/covey/join-token", "opt/covey/card.json"}
    assert first.keys() == again.keys()
    make(l4t, environment, "orin-b", joins=False)
    found = check_jetson(l4t)
    assert (found.device, found.server_url, found.problems) == ("orin-b", None, [])
    assert not (l4t / "rootfs/opt/covey/join-token").exists()  # the other device's token is not left


@needs_root
@pytest.mark.parametrize("users", [False, True])
def test_the_wizard_that_keeps_services_from_starting_is_taken_out_and_found_where_it_is_back(
    desk: Desk, tmp_path: Path, environment: Environment, *, users: bool
) -> None:
    l4t = write_l4t(tmp_path, users=users)
    target = l4t / "rootfs/etc/systemd/system/default.target"
    if not users:
        (l4t / "keep-wizard").touch()  # a script that leaves it, or apply_binaries.sh run again
    desk.flash(l4t, "--dry-run")
    assert "keeps services from starting: it is taken out" in desk.said
    make(l4t, environment)
    assert not target.is_symlink()
    assert (l4t / "arguments").exists() is not users  # who is there is not made again
    target.symlink_to("/lib/systemd/system/nv-oem-config.target")
    found = desk.check(l4t, code=ConfigError.exit_code)
    assert [problem for problem in found["problems"] if "nv-oem-config.target" in problem]


@needs_root
def test_without_a_user_the_board_asks_and_covey_waits_for_that(desk: Desk, tmp_path: Path) -> None:
    l4t = write_l4t(tmp_path)
    shutil.rmtree(l4t / "tools")
    found = desk.flash(l4t, "--no-user")
    assert (l4t / "rootfs/etc/systemd/system/default.target").is_symlink()
    assert "asks for a user" in found["steps"][0]
    assert found["problems"] == []


@needs_root
def test_onnx_runtime_with_cuda_comes_from_an_index_that_is_named(
    desk: Desk, tmp_path: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wheel's tag is that of NVIDIA's wheels: linux_aarch64, for one version of Python."""
    for name, value in (("PIP_CONFIG_FILE", os.devnull), ("NO_PROXY", "127.0.0.1"), ("no_proxy", "127.0.0.1")):
        monkeypatch.setenv(name, value)  # no index but these two
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    l4t = write_l4t(tmp_path)
    usual = [wheel for wheel in wheels.glob("*.whl") if not wheel.name.startswith("onnxruntime-")]
    write_index(tmp_path / "web/usual", usual)
    write_index(tmp_path / "web/nvidia", [write_gpu_wheel(tmp_path / "gpu", "3.10")])
    for address in served(tmp_path / "web"):
        flags = ("--index-url", f"{address}/usual/", "--extra-index-url", f"{address}/nvidia/")
        desk.make(l4t, "--onnxruntime-gpu", *flags)
        other = write_l4t(tmp_path / "other", "3.12")
        desk.make(other, "--onnxruntime-gpu", *flags, code=NetworkError.exit_code)  # this index has it for 3.10 alone
        assert "--extra-index-url" in desk.said
        assert desk.check(other, code=ConfigError.exit_code)["device"] is None
    note = json.loads((l4t / "rootfs/opt/covey/card.json").read_text())
    assert "onnxruntime_gpu 1.23.0" in note["packages"]
    assert not any(package.startswith("onnxruntime ") for package in note["packages"])
    with tarfile.open(l4t / "rootfs/opt/covey/env.tar") as tar:
        entry = next(
            name for name in tar.getnames() if name.startswith("env-a/lib") and "covey-" in name and "METADATA" in name
        )
        metadata = (tar.extractfile(entry) or io.BytesIO()).read().decode()
    assert "Requires-Dist: onnxruntime-gpu" in metadata
    assert "Requires-Dist: onnxruntime>" not in metadata
    assert any("execution_providers" in step for step in desk.check(l4t)["steps"])
    assert tomllib.loads((l4t / "rootfs/opt/covey/edge-settings.toml").read_text()) == {
        "execution_providers": ["cuda", "cpu"]
    }


def served(folder: Path) -> Iterator[str]:
    """Yield the address of a web server for a folder, once."""
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Says nothing."""

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.mark.parametrize("before", ["", 'execution_providers = ["cuda", "cpu"]\n'])
def test_the_first_boot_puts_the_providers_at_the_head_of_edge_toml_once(tmp_path: Path, before: str) -> None:
    """The end of the set-up script, which runs after joining, is run here with the board's folders elsewhere."""
    script = payload._SETUP
    start, end = script.index('if [ -e "$folder/edge-settings.toml" ]'), script.index('touch "$folder/set-up"')
    part = script[start:end].replace("chown covey:covey", "true")
    home, folder = tmp_path / "home", tmp_path / "opt"
    home.mkdir()
    folder.mkdir()
    (folder / "edge-settings.toml").write_text('execution_providers = ["cuda", "cpu"]\n')
    (home / "edge.toml").write_text(before + 'name = "orin-a"\n[data]\npath = "rows"\n')
    for _ in range(2):
        subprocess.run(["sh", "-euc", f"home={home} folder={folder}\n{part}"], check=True, timeout=30)
        assert tomllib.loads((home / "edge.toml").read_text())["execution_providers"] == ["cuda", "cpu"]
    assert not (folder / "edge-settings.toml").exists()
    assert (home / "edge.toml").read_text().count("execution_providers") == 1


@needs_root
@pytest.mark.parametrize("count", range(1, 8))
def test_interrupted_work_is_not_taken_for_finished(
    tmp_path: Path, environment: Environment, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """The disk fails at each of the files in turn, over one that was finished: nothing of it is started at boot."""
    l4t = write_l4t(tmp_path, users=True)
    make(l4t, environment)
    written, real = 0, overlay.write_whole

    def failing(*arguments: Any) -> None:
        nonlocal written
        written += 1
        if written == count:
            raise OSError(5, "Input/output error")
        real(*arguments)

    monkeypatch.setattr(overlay, "write_whole", failing)
    if count <= FILES:
        with pytest.raises(StorageError):
            make(l4t, environment, "orin-b")
        found = check_jetson(l4t)
        assert found.device is None
        assert "interrupted" in found.problems[0]
    monkeypatch.undo()
    assert make(l4t, environment, "orin-b").problems == []


FILES = 6
"""env.tar, setup.sh, two units, the token and the note are written one after the other."""


@needs_root
@pytest.mark.parametrize("spoil", ["missing", "changed", "owner", "link", "token", "archive"])
def test_check_finds_what_is_wrong(desk: Desk, tmp_path: Path, environment: Environment, spoil: str) -> None:
    l4t = write_l4t(tmp_path)
    make(l4t, environment)
    opt = l4t / "rootfs/opt/covey"
    if spoil == "missing":
        (opt / "setup.sh").unlink()
    elif spoil == "changed":
        (l4t / "rootfs/etc/systemd/system/covey-edge.service").write_text("[Unit]\n")
    elif spoil == "owner":
        os.chown(opt / "setup.sh", 1000, 1000)
    elif spoil == "link":
        (l4t / "rootfs/etc/systemd/system/multi-user.target.wants/covey-edge.service").unlink()
    elif spoil == "token":
        (opt / "join-token").chmod(0o644)
    else:
        (opt / "env.tar").write_bytes(b"no archive" * 100)
    assert desk.check(l4t, code=ConfigError.exit_code)["problems"]
