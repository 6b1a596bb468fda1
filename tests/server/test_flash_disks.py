"""Only a card that can be removed and is in no use is written to; what is interrupted has no partition table."""

from __future__ import annotations

import io
import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from edge_runtime.errors import ConfigError, StorageError
from server.commands.progress import ByteProgress
from server.flash.disk import check_disk, disks_in, list_disks, write_disk

if TYPE_CHECKING:
    from pathlib import Path

GB = 10**9


def device(name: str, size: int = 32 * GB, **fields: Any) -> dict[str, Any]:
    said = {"name": name, "path": f"/dev/{name}", "type": "disk", "rm": False, "hotplug": False, "ro": False}
    return {**said, "size": size, "model": "A disk ", "tran": None, "mountpoints": [None], **fields}


def lsblk(*devices: dict[str, Any]) -> bytes:
    return json.dumps({"blockdevices": devices}).encode()


ROOT = device("part", type="part", mountpoints=["/"])
MEDIA = device("part", type="part", mountpoints=["/media/card"])
MACHINE = (
    device("nvme0n1", 500 * GB, children=[ROOT]),
    device("sda", hotplug=True, tran="usb"),
    device("sdb", rm=True, children=[MEDIA]),
    device("sdc", rm=True, ro=True),
    device("sdd", 500 * GB),
    device("sde", GB, rm=True),
    device("loop0", type="loop"),
)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/dev/nvme0n1", "own system"),
        ("/dev/sdb", "mounted at /media/card"),
        ("/dev/sdc", "locked"),
        ("/dev/sdd", "no removable disk"),
        ("/dev/sde", "1.0 GB, and the image needs 3.0 GB"),
        ("/dev/sda1", "a part of a disk"),
        ("/dev/loop0", "no disk"),
        ("/dev/nothing", "no disk"),
    ],
)
def test_disks_that_are_not_written_to(path: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        check_disk(path, 3 * GB, disks_in(lsblk(*MACHINE)), force=False)
    assert "/dev/sda (A disk, 32.0 GB)" in caught.value.hint or path in ("/dev/sdc", "/dev/sde")


@pytest.mark.parametrize("path", ["/dev/nvme0n1", "/dev/sdb", "/dev/sdc", "/dev/sde"])
def test_force_is_for_disks_that_are_not_removable_and_for_nothing_else(path: str) -> None:
    disks = disks_in(lsblk(*MACHINE))
    assert check_disk("/dev/sdd", 3 * GB, disks, force=True).path == "/dev/sdd"
    with pytest.raises(ConfigError):
        check_disk(path, 3 * GB, disks, force=True)


def test_a_card_in_a_usb_reader_is_written_to() -> None:
    assert check_disk("/dev/sda", 3 * GB, disks_in(lsblk(*MACHINE)), force=False).size_bytes == 32 * GB


def test_this_machines_own_disks_are_listed() -> None:
    for disk in list_disks():
        if "/" in disk.mounted:
            with pytest.raises(ConfigError, match="own system"):
                check_disk(disk.path, 0, [disk], force=True)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "card.img"
    path.write_bytes(os.urandom(9 << 20))
    return path


@pytest.fixture
def card(tmp_path: Path) -> Path:
    path = tmp_path / "card"
    path.write_bytes(b"\xff" * (16 << 20))
    return path


def test_an_image_is_written_and_read_back(image: Path, card: Path) -> None:
    seen: list[str] = []
    write_disk(image, card, lambda what, _done, _all: seen.append(what))
    assert card.read_bytes()[: 9 << 20] == image.read_bytes()
    assert set(seen) == {"writing", "reading back"}


@pytest.mark.parametrize("what", ["writing", "reading back"])
def test_interrupted_work_leaves_no_partition_table(image: Path, card: Path, what: str) -> None:
    def stop(now: str, _done: int, _all: int) -> None:
        if now == what:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_disk(image, card, stop)
    assert card.read_bytes()[: 1 << 20] == bytes(1 << 20)


def test_a_card_that_reads_back_otherwise_is_named_and_has_no_partition_table(image: Path, card: Path) -> None:
    def damage(what: str, done: int, every: int) -> None:
        if what == "writing" and done == every:
            with card.open("r+b") as file:
                file.seek(8 << 20)
                file.write(b"damage")

    with pytest.raises(StorageError, match="reads back otherwise"):
        write_disk(image, card, damage)
    assert card.read_bytes()[: 1 << 20] == bytes(1 << 20)


def test_a_card_that_is_pulled_out_is_named(image: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="not finished") as caught:
        write_disk(image, tmp_path / "gone", lambda *_: None)
    assert "put it in again" in caught.value.hint


def test_progress_says_share_rate_and_time_left() -> None:
    out, now = io.StringIO(), [0.0]
    show = ByteProgress("writing", out, lambda: now[0])
    for second in range(1, 101):
        now[0] = float(second)
        show(second * 10**6, 100 * 10**6)
    lines = out.getvalue().splitlines()
    assert lines[4] == "writing:  50%, 1.0 MB/s, 50 s left"
    assert lines[-1] == "writing: 100%, 1.0 MB/s"
    assert len(lines) == 10
