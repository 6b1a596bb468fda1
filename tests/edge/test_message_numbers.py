"""The files of a signed member: no number is used twice, whatever ends the process or happens to the files."""

from __future__ import annotations

import itertools
import json
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from signing import FLEET, fleet_of, reason_of

from edge_runtime.errors import StorageError
from edge_runtime.protocol.signed import SERVER
from edge_runtime.protocol.topics import hello_topic
from edge_runtime.signing import sequence
from edge_runtime.signing.sequence import BLOCK, SequenceStore, clock_us

HELLO = hello_topic(FLEET)


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


def test_a_hello_said_again_is_written_once(tmp_path: Path) -> None:
    fleet = fleet_of("pi")
    signer, verifier = fleet.signer(SERVER, "server"), fleet.verifier("pi", "boot", tmp_path)
    assert reason_of(verifier, HELLO, signer.seal(HELLO, b"hello")) is None
    file = tmp_path / "pi-hello.json"
    written = file.stat().st_mtime_ns, file.read_bytes()
    assert reason_of(verifier, HELLO, signer.seal(HELLO, b"hello")) is None
    assert (file.stat().st_mtime_ns, file.read_bytes()) == written


@pytest.mark.parametrize("content", [b"", b"{}", b"\0" * 50, b'{"v": 2}', b'{"v":1,"key_id":"AA","sequence":1}'])
def test_a_damaged_file_of_the_last_hello_is_set_aside(content: bytes, tmp_path: Path) -> None:
    fleet = fleet_of("pi")
    (tmp_path / "pi-hello.json").write_bytes(content)
    verifier = fleet.verifier("pi", "boot", tmp_path)
    assert (tmp_path / "pi-hello.json.bad").read_bytes() == content
    assert reason_of(verifier, HELLO, fleet.signer(SERVER, "server").seal(HELLO, b"hello")) is None
    assert json.loads((tmp_path / "pi-hello.json").read_text())["sequence"] == 1


def test_a_disk_that_is_full_stops_no_hello(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fleet = fleet_of("pi")
    (tmp_path / "in the way").write_text("")
    verifier = fleet.verifier("pi", "boot", tmp_path / "in the way")
    assert reason_of(verifier, HELLO, fleet.signer(SERVER, "server").seal(HELLO, b"hello")) is None
    assert "older hello" in caplog.text
