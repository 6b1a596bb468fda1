"""A device notices that its rows have changed: a file, or any file of a directory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edge_runtime.data.watch import RowsWatch


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("good/1.txt", "bad/2.txt"):
        (tmp_path / "rows" / name).parent.mkdir(parents=True)
        (tmp_path / "rows" / name).write_text("a film")
    return tmp_path / "rows"


def test_every_change_of_a_directory_changes_its_stamp(folder: Path) -> None:
    watch = RowsWatch(folder)
    stamps = [watch.stamp()]

    def changed() -> bool:
        stamps.append(watch.stamp())
        return stamps[-1] not in stamps[:-1]

    assert not changed()
    (folder / "good" / "1.txt").write_text("a movie")
    assert changed()
    os.utime(folder / "bad" / "2.txt", ns=(1, 1))
    assert changed()
    (folder / "good" / "1.txt").rename(folder / "bad" / "1.txt")
    assert changed()
    (folder / "good" / "3.txt").touch()
    assert changed()
    (folder / "good" / "3.txt").unlink()
    assert stamps[4] == watch.stamp()


def test_a_directory_without_a_byte_has_no_rows(folder: Path) -> None:
    watch = RowsWatch(folder)
    assert watch.reason is None
    (folder / "good" / "nothing.txt").symlink_to(folder / "gone.txt")
    assert watch.reason is None
    for file in folder.glob("*/[12].txt"):
        file.write_text("")
    assert watch.reason == "it has no rows"
    assert RowsWatch(folder / "absent").reason == "its file cannot be read"
