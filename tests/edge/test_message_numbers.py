"""Sequence numbers: never one twice, whatever ends the process or happens to the file."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.errors import StorageError
from edge_runtime.signing import sequence
from edge_runtime.signing.sequence import BLOCK, SequenceStore, clock_us


def at(path: Path, begin: int = 0) -> SequenceStore:
    return SequenceStore(path / "numbers.json", lambda: begin)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 2 * BLOCK + 1), max_size=6))
def test_no_number_comes_twice_over_restarts(tmp_path_factory: pytest.TempPathFactory, takes: list[int]) -> None:
    folder, taken = tmp_path_factory.mktemp("numbers"), []
    for count in takes:
        store = at(folder, 7)  # a new process; the one before it ended without a word
        taken += [store.take() for _ in range(count)]
    assert all(before < after for before, after in itertools.pairwise(taken))


@pytest.mark.parametrize("fails_in", ["before the rename", "after the rename"])
def test_a_power_cut_while_numbers_are_reserved_uses_none_twice(
    fails_in: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = at(tmp_path)
    taken = [store.take() for _ in range(BLOCK)]
    write = sequence.write_atomically

    def cut(path: Path, data: bytes) -> None:
        if fails_in == "after the rename":
            write(path, data)
        raise StorageError("the power is cut")

    monkeypatch.setattr(sequence, "write_atomically", cut)
    for _ in range(3):
        with pytest.raises(StorageError):
            store.take()
    monkeypatch.undo()
    assert store.take() > taken[-1]
    assert at(tmp_path).take() > store.take()


def test_the_disk_is_written_once_for_each_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    write = sequence.write_atomically

    def count(path: Path, data: bytes) -> None:
        written.append(data)
        write(path, data)

    monkeypatch.setattr(sequence, "write_atomically", count)
    store = at(tmp_path)
    for _ in range(3 * BLOCK):
        store.take()
    assert len(written) == 3


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 30, b"{}", b'{"v":1,"reserved":-1}', b'{"v":2,"reserved":5}', b"[" * 9999]
)
def test_a_damaged_file_is_set_aside_and_numbers_begin_at_the_clock(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "numbers.json").write_bytes(content)
    assert at(tmp_path, 123_456).take() == 123_456
    assert (tmp_path / "numbers.json.bad").read_bytes() == content
    assert at(tmp_path, 0).take() == 123_456 + BLOCK


def test_a_folder_in_the_files_place_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "numbers.json").mkdir()
    assert at(tmp_path, 5).take() == 5
    assert at(tmp_path, 5).take() == 5 + BLOCK


def test_a_lost_file_begins_beyond_all_that_was_used(tmp_path: Path) -> None:
    store = SequenceStore(tmp_path / "numbers.json")
    last = max(store.take() for _ in range(BLOCK))
    (tmp_path / "numbers.json").unlink()
    later = clock_us() + 60_000_000
    assert SequenceStore(tmp_path / "numbers.json", lambda: later).take() > last


def test_a_clock_that_goes_back_does_not_matter_while_there_is_a_file(tmp_path: Path) -> None:
    first = at(tmp_path, 10**15).take()
    assert at(tmp_path, 0).take() == first + BLOCK


def test_threads_share_the_numbers(tmp_path: Path) -> None:
    store, taken = at(tmp_path), []

    def take_many() -> None:
        taken.extend([store.take() for _ in range(BLOCK)])

    threads = [threading.Thread(target=take_many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(taken)) == 4 * BLOCK
