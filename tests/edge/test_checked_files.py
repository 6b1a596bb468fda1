"""One flipped bit, anywhere in a small file of a device's own, is noticed: it never says something else."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from edge_runtime.protocol.signed import KEY_ID_BYTES
from edge_runtime.signing.marks import HelloFile
from edge_runtime.signing.sequence import SequenceStore
from edge_runtime.store.journal import Begun, Deaths, Journal, JournalDamagedError, read_journal
from edge_runtime.store.store import Store
from edge_runtime.store.trials import TRIALS_FILE, Combination, Trials, TrialsDamagedError, _write, read_trials

if TYPE_CHECKING:
    from collections.abc import Iterator

BEGUN = Begun("job", "0" * 64, 3, 1, "backprop", 2, 1.7e9, 1000, 2000, "boot")
JOURNAL = Journal("job", "a" * 64, "b" * 64, b"a report of a round", True, BEGUN, Deaths(BEGUN), "c" * 64, 3, "d" * 64)
COMBINATION = Combination("a" * 64, "onnxruntime", "1.2", "0.1", "aarch64", "1.0")


def flipped(data: bytes) -> Iterator[bytes]:
    """A file with one bit of it flipped, in every byte once."""
    for place in range(len(data)):
        yield data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :]


def test_of_the_journal(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write_journal(JOURNAL)
    assert store.journal() == JOURNAL
    path = tmp_path / "journal.json"
    for damaged in flipped(path.read_bytes()):
        path.write_bytes(damaged)
        with pytest.raises(JournalDamagedError):
            read_journal(path)


def test_of_the_trials(tmp_path: Path) -> None:
    written = Trials([COMBINATION])
    _write(tmp_path, written)
    assert read_trials(tmp_path) == written
    path = tmp_path / TRIALS_FILE
    for damaged in flipped(path.read_bytes()):
        path.write_bytes(damaged)
        with pytest.raises(TrialsDamagedError):
            read_trials(tmp_path)


def test_of_the_message_numbers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "sequence.json"
    SequenceStore(path, lambda: 5).take()
    for count, damaged in enumerate(flipped(path.read_bytes()), 1):
        path.write_bytes(damaged)
        assert SequenceStore(path, lambda: 777_777).take() == 777_777
        assert caplog.text.count("set aside as") == count


def test_of_the_last_hello(tmp_path: Path) -> None:
    path = tmp_path / "hello.json"
    HelloFile(path).keep(bytes(KEY_ID_BYTES), 5, b"body")
    assert HelloFile(path).heard is not None
    for damaged in flipped(path.read_bytes()):
        path.write_bytes(damaged)
        assert HelloFile(path).heard is None
        assert not path.exists()


def test_files_of_earlier_versions_are_read(tmp_path: Path) -> None:
    (tmp_path / "journal.json").write_bytes(msgspec.json.encode(JOURNAL))
    (tmp_path / TRIALS_FILE).write_bytes(msgspec.json.encode(Trials([COMBINATION])))
    assert read_journal(tmp_path / "journal.json") == JOURNAL
    assert read_trials(tmp_path) == Trials([COMBINATION])
