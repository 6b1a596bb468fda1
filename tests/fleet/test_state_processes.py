"""Real processes whose state directory is read-only, full or taken away, and which have no file descriptor left."""

from __future__ import annotations

import contextlib
import json
import resource
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from fleets import Fleet, Process, free_port, wait_for, write_edge, write_job

from edge_runtime.cli import main as edge_main
from edge_runtime.errors import StorageError
from edge_runtime.files.writable import check_writable
from edge_runtime.store.state_check import check_state_dir
from server.cli import main as server_main

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle

pytestmark = pytest.mark.timeout(900)


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A real file system of its own."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("cannot mount a file system here (needs root)")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(params=["read-only", "full", "a file", "below a file"])
def unusable(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A state directory that cannot be used, and what is said of it."""
    place = tmp_path / "disk"
    if request.param == "read-only":
        with mounted(place, "ro"):
            yield place, "read-only file system"
    elif request.param == "full":
        with mounted(place, "size=64k"):
            with contextlib.suppress(OSError):
                (place / "filler").write_bytes(bytes(1 << 20))
            yield place, "is full"
    else:
        place.write_bytes(b"x")
        yield (place if request.param == "a file" else place / "state"), "is not a folder"


def test_an_unusable_state_directory_is_said_when_a_device_starts(
    tmp_path: Path, unusable: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, said = unusable
    config = write_edge(tmp_path / "pi", "pi", free_port(), 0, state_dir=str(folder))
    assert edge_main(["run", "--config", str(config), "--format", "json"]) == StorageError.exit_code
    error = json.loads(capsys.readouterr().out)
    assert said in error["error"]
    assert str(tmp_path / "disk") in error["error"]
    assert "state_dir in edge.toml" in error["hint"]
    with pytest.raises(StorageError, match=said):
        check_state_dir(folder)


def test_an_unusable_state_directory_is_said_when_a_server_starts(
    tmp_path: Path, unusable: tuple[Path, str], tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, said = unusable
    job = ["--bundle", str(tiny_bundle.path), "--job", str(write_job(tmp_path))]
    flags = ["--state-dir", str(folder), "--mqtt-port", "0", "--format", "json"]
    for command in (["run", *job], ["serve"]):
        assert server_main([*command, *flags]) == StorageError.exit_code
        error = json.loads(capsys.readouterr().out)
        assert said in error["error"]
        assert "--state-dir" in error["hint"]


def test_a_check_leaves_nothing_behind(tmp_path: Path) -> None:
    check_writable(tmp_path / "not" / "yet", "a setting")
    check_writable(tmp_path, "a setting")
    assert not list(tmp_path.iterdir())


def test_a_device_whose_state_directory_is_removed_goes_on(fleet: Fleet) -> None:
    server = fleet.serve(write_job(fleet.root, rounds=6, min_devices=2, min_reports=1))
    devices = [fleet.device(f"device-{index}", index) for index in range(2)]
    server.wait_event("round_closed")
    shutil.rmtree(fleet.root / "device-0" / "covey-state", ignore_errors=True)
    result = server.result()
    assert [device.result()["adapter_sha256"] for device in devices] == [result["adapter_sha256"]] * 2


def limit_descriptors(process: Process, count: int | None) -> None:
    """Let a running process open no more files than it has (0), or as many as before (None)."""
    pid = process.popen.pid
    hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (hard if count is None else count, hard))


@pytest.mark.slow
def test_a_device_without_descriptors_refuses_and_comes_back(fleet: Fleet) -> None:
    """The server cannot end while it is refused: no round closes without this device."""
    server = fleet.serve(write_job(fleet.root, rounds=20, min_devices=1, min_reports=1))
    device = fleet.device("device-0", 0)
    server.wait_event("round_closed")
    limit_descriptors(device, 0)

    def refused() -> bool:
        """It says so; or its connection has ended just now, and a new one needs a descriptor."""
        events = server.events()
        failed = [event["reason"] for event in events if event["event"] == "offer_failed"]
        is_lost = any(event.get("state") == "lost" for event in events if event["event"] == "device")
        if is_lost or any("no file descriptor" in reason for reason in failed):
            return True
        assert device.popen.poll() is None, device.stderr.read_text()
        assert server.popen.poll() is None, server.stderr.read_text()
        return False

    wait_for(refused, "a refusal for want of descriptors")
    limit_descriptors(device, None)
    assert device.result()["adapter_sha256"] == server.result()["adapter_sha256"]


def test_a_server_without_descriptors_goes_on_when_it_has_some(fleet: Fleet) -> None:
    server = fleet.serve(write_job(fleet.root, rounds=6, min_devices=1, min_reports=1))
    device = fleet.device("device-0", 0)
    server.wait_event("round_closed")
    limit_descriptors(server, 0)

    def said() -> bool:
        assert server.popen.poll() is None, server.stderr.read_text()
        told = server.stderr.read_text()
        return "no file descriptor left" in told or "out of system resource" in told

    wait_for(said, "the server's word about descriptors")
    limit_descriptors(server, None)
    result = server.result()
    assert result["rounds"] == 6
    assert device.result()["adapter_sha256"] == result["adapter_sha256"]


@pytest.mark.slow
def test_a_server_whose_ledger_is_removed_says_so(fleet: Fleet) -> None:
    server = fleet.serve(write_job(fleet.root, rounds=200, min_devices=1, min_reports=1))
    fleet.device("device-0", 0)
    server.wait_event("round_closed")
    shutil.rmtree(fleet.state_dir, ignore_errors=True)
    assert server.popen.wait(60) == StorageError.exit_code
    assert "was removed, replaced or unmounted while it was in use" in server.stderr.read_text()


@pytest.mark.slow
def test_a_resumed_server_does_not_train_on_from_a_damaged_adapter(fleet: Fleet) -> None:
    job = write_job(fleet.root, rounds=40, min_devices=1, min_reports=1)
    server = fleet.serve(job)
    fleet.device("device-0", 0)
    closed = server.wait_event("round_closed", 2)
    server.popen.kill()
    server.popen.wait()
    for path in (fleet.state_dir / "blobs").iterdir():
        path.write_bytes(bytes(path.stat().st_size))
    again = fleet.serve(job)
    assert again.popen.wait(60) == 11
    told = again.stderr.read_text()
    assert "is not in the state directory, or damaged" in told
    assert "set aside as" in told
    assert closed["adapter_sha256"]


def fill(place: Path) -> None:
    with contextlib.suppress(OSError), (place / "filler").open("wb") as file:
        while True:
            file.write(bytes(1 << 16))
            file.flush()


def remount(place: Path, mode: str) -> None:
    """Remount; the kernel refuses it in the moment in which a file of the place is open for writing."""
    command = ["mount", "-o", f"remount,{mode}", str(place)]
    wait_for(lambda: subprocess.run(command, check=False, capture_output=True).returncode == 0, f"remounting {mode}")


HARM: dict[str, tuple[Callable[[Path], None], Callable[[Path], None], str]] = {
    "full": (fill, lambda place: (place / "filler").unlink(), "full"),
    "read-only": (lambda place: remount(place, "ro"), lambda place: remount(place, "rw"), "read-only"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", HARM)
def test_a_disk_that_takes_no_writes_for_a_while_costs_no_device(fleet: Fleet, kind: str) -> None:
    harm, mend, said = HARM[kind]
    with mounted(fleet.root / "disk", "size=96m") as disk:
        server = fleet.serve(write_job(fleet.root, rounds=60, min_reports=1, max_attempts=1000))
        device = fleet.device("device-0", 0, state_dir=str(disk / "state"))
        server.wait_event("round_closed", 2)
        harm(disk)

        def refused() -> bool:
            assert device.popen.poll() is None, device.stderr.read_text()
            assert server.popen.poll() is None, server.stderr.read_text()
            reasons = [event["reason"] for event in server.events() if event["event"] == "offer_failed"]
            return any(said in reason for reason in reasons)

        wait_for(refused, f"a refusal because the disk is {said}")
        mend(disk)
        result = server.result(500.0)
        assert result["rounds"] == 60
        assert device.result()["adapter_sha256"] == result["adapter_sha256"]
        fleet.stop()
