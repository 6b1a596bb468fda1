"""Replay from mapped files into new ones: what may be mapped, and a worker that comes too late, or finds no place."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import numpy as np
import pytest
from round_logs import make_log

from edge_runtime.errors import StorageError
from edge_runtime.forward_only.replay_file import write_replayed
from edge_runtime.forward_only.slices import MomentFiles, ReplayFiles, replay_task
from edge_runtime.protocol.step_rule import StepRule
from server.ray_work.replaying_in_place import InPlace, Mapped, New, mapped_files, replay_between

if TYPE_CHECKING:
    from pathlib import Path

    from edge_runtime.values import FloatVector

SIZE = 3_000


@pytest.fixture
def theta(tmp_path: Path) -> FloatVector:
    """A mapped adapter."""
    path = tmp_path / "theta"
    np.random.Generator(np.random.PCG64(3)).normal(size=SIZE).astype("<f4").tofile(path)
    return np.memmap(path, dtype="<f4", mode="r")


def files_of(folder: Path, theta: FloatVector, previous: FloatVector | None = None, **more: object) -> ReplayFiles:
    moment = MomentFiles(more["base"], folder / "moment") if "base" in more else None  # type: ignore[arg-type]
    return ReplayFiles(theta, previous, moment, folder / "new", None, 1000)


def test_whole_files_are_read_where_they_are(tmp_path: Path, theta: FloatVector) -> None:
    path = (tmp_path / "theta").resolve()
    assert mapped_files(files_of(tmp_path, theta)) == Mapped(path, None, None)
    assert mapped_files(files_of(tmp_path, theta, theta, base=theta)) == Mapped(path, path, path)
    assert mapped_files(files_of(tmp_path, theta, base=None)) == Mapped(path, None, None)


def test_what_is_not_the_whole_of_a_file_is_sent(tmp_path: Path, theta: FloatVector) -> None:
    """A copy, a part, a map in another order, one that was changed in memory, and one whose file is gone."""
    changed = np.memmap(tmp_path / "theta", dtype="<f4", mode="c")
    shifted = np.memmap(tmp_path / "theta", dtype="<f4", mode="r", offset=4)
    for other in (np.array(theta), theta[:2000], theta[1000:], theta[::-1], changed, shifted, theta.astype(">f4")):
        assert mapped_files(files_of(tmp_path, other)) is None
        assert mapped_files(files_of(tmp_path, theta, other)) is None
        assert mapped_files(files_of(tmp_path, theta, base=other)) is None
    (tmp_path / "theta").unlink()
    assert mapped_files(files_of(tmp_path, theta)) is None


def in_place(tmp_path: Path, link: Path) -> InPlace:
    return InPlace(
        replay_task([make_log(StepRule(), 2)], SIZE), Mapped(tmp_path / "theta", None, None), New(link, None, None)
    )


@pytest.mark.usefixtures("theta")
def test_a_worker_that_comes_too_late_finds_no_file_and_makes_none(tmp_path: Path) -> None:
    """The links of a replay go when it ends; a new one to the same file has another name."""
    link, new = tmp_path / "link", tmp_path / "new"
    new.write_bytes(bytes(4 * SIZE))
    with pytest.raises(StorageError, match="cannot write"):
        replay_between(in_place(tmp_path, link), (0, 1000))
    assert not link.exists()
    assert new.read_bytes() == bytes(4 * SIZE)
    link.symlink_to(tmp_path / "gone")
    with pytest.raises(StorageError, match="gone: No such file"):
        replay_between(in_place(tmp_path, link), (0, 1000))
    assert not (tmp_path / "gone").exists()


def test_pieces_in_any_order_and_twice_write_what_one_process_writes(tmp_path: Path, theta: FloatVector) -> None:
    new = tmp_path / "new"
    new.write_bytes(bytes(4 * SIZE))
    given = in_place(tmp_path, new)
    for borders in [(2000, 3000), (0, 1000), (1000, 2000), (0, 1000)]:
        replay_between(given, borders)
    write_replayed(tmp_path / "alone", theta, [make_log(StepRule(), 2)])
    assert new.read_bytes() == (tmp_path / "alone").read_bytes()


def test_a_full_disk_is_said(tmp_path: Path, theta: FloatVector, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_file: int, _data: object, _at: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    assert theta.size == SIZE
    (tmp_path / "new").write_bytes(bytes(4 * SIZE))
    monkeypatch.setattr("os.pwrite", full)
    with pytest.raises(StorageError, match=r"disk full while writing .*new"):
        replay_between(in_place(tmp_path, tmp_path / "new"), (0, 1000))
