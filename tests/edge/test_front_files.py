"""The file of front activations: what it gives back, what a cut or flipped file costs, its bound, and kill -9."""

from __future__ import annotations

import hashlib
import logging
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.fronts.front_folder import FrontFolder
from edge_runtime.fronts.front_key import CACHE_VERSION, FrontKey
from edge_runtime.fronts.row_file import RowFile, record_bytes

if TYPE_CHECKING:
    from edge_runtime.fronts.front_folder import FrontRows

KEY = FrontKey(CACHE_VERSION, "a" * 64, 3, "b" * 64, "onnxruntime 1.23, 1 threads", "x86_64", "float32")


def digest_of(index: int) -> bytes:
    return hashlib.sha256(str(index).encode()).digest()


def data_of(index: int, size: int = 200) -> bytes:
    return np.random.Generator(np.random.PCG64(index)).bytes(size + index % 7)


def fill(file: RowFile, count: int, start: int = 0) -> None:
    for index in range(start, start + count):
        file.add(digest_of(index), index, index % 2, data_of(index))


def read(file: RowFile, index: int) -> bytes | None:
    found = file.find(digest_of(index))
    if found is None:
        return None
    row, data = found
    assert (row.tokens, row.precision) == (index, index % 2)
    return bytes(data)


def test_rows_are_there_again_after_the_file_was_closed(tmp_path: Path) -> None:
    file = RowFile(tmp_path / "f", b"key")
    fill(file, 10)
    assert [read(file, index) for index in range(11)] == [*(data_of(index) for index in range(10)), None]
    file.close()
    again = RowFile(tmp_path / "f", b"key")
    assert [read(again, index) for index in range(11)] == [*(data_of(index) for index in range(10)), None]
    fill(again, 5, start=10)
    assert all(read(again, index) == data_of(index) for index in range(15))
    assert again.size == (tmp_path / "f").stat().st_size


def test_a_file_of_another_key_is_made_anew(tmp_path: Path) -> None:
    file = RowFile(tmp_path / "f", b"key")
    fill(file, 3)
    file.close()
    other = RowFile(tmp_path / "f", b"other")
    assert other.rows == {}
    other.close()
    assert RowFile(tmp_path / "f", b"key").rows == {}


@settings(deadline=None, max_examples=150)
@given(
    count=st.integers(0, 6),
    damage=st.lists(
        st.one_of(
            st.tuples(st.just("cut"), st.floats(0, 1)),
            st.tuples(st.just("flip"), st.floats(0, 1)),
            st.tuples(st.just("zero"), st.floats(0, 1)),
            st.tuples(st.just("grow"), st.floats(0, 1)),
        ),
        max_size=4,
    ),
)
def test_a_damaged_file_gives_right_rows_or_none(count: int, damage: list[tuple[str, float]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "f"
        file = RowFile(path, b"key")
        fill(file, count)
        file.close()
        data = bytearray(path.read_bytes())
        for kind, where in damage:
            at = min(int(where * len(data)), max(len(data) - 1, 0))
            if kind == "cut":
                del data[at:]
            elif kind == "grow":
                data += bytes(at % 300)
            elif data:
                data[at : at + 70] = bytes(len(data[at : at + 70])) if kind == "zero" else bytes([data[at] ^ 1])
        path.write_bytes(data)
        again = RowFile(path, b"key")
        for index in range(count):
            assert read(again, index) in (data_of(index), None)
        fill(again, 3, start=count)
        assert all(read(again, index) == data_of(index) for index in range(count, count + 3))
        again.close()
        last = RowFile(path, b"key")
        assert all(read(last, index) == data_of(index) for index in range(count, count + 3))


_WRITER = """
import sys
sys.path[:0] = sys.argv[2:]
from pathlib import Path
from test_front_files import RowFile, data_of, digest_of
file, index = RowFile(Path(sys.argv[1]), b"key"), 0
while True:
    file.add(digest_of(index), index, index % 2, data_of(index, 50_000))
    index += 1
    if index == 20:
        print("begun", flush=True)
    if index % 200 == 0:
        file.keep(digest_of(kept) for kept in range(index - 50, index))
"""


@pytest.mark.parametrize("after_s", [0.0, 0.05, 0.11, 0.23])
def test_a_writer_that_is_killed_leaves_whole_rows_only(tmp_path: Path, after_s: float) -> None:
    """A real process, killed with SIGKILL while it appends and copies."""
    path = tmp_path / "f"
    command = [sys.executable, "-c", _WRITER, str(path), str(Path(__file__).parent), str(Path.cwd())]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"begun\n"
        time.sleep(after_s)  # not to wait for something: the moment of death is what varies
        writer.send_signal(signal.SIGKILL)
    file = RowFile(path, b"key")
    assert len(file.rows) >= 20
    found = [index for index in range(20_000) if digest_of(index) in file.rows]
    assert len(found) == len(file.rows)
    assert all(read(file, index) == data_of(index, 50_000) for index in found)


def opened(root: Path, most_bytes: int, key: FrontKey = KEY, live_rows: int = 10) -> FrontRows:
    rows = FrontFolder(root, most_bytes).open(key, live_rows)
    assert rows is not None
    return rows


def on_disk(root: Path) -> int:
    return sum(path.stat().st_size for path in root.glob("*.front"))


def use(rows: FrontRows, index: int, size: int = 1000) -> bool:
    """Look a row up, and keep it if it was not there; return whether it was."""
    found = rows.find(digest_of(index))
    if found is None:
        rows.add(digest_of(index), 7, 0, data_of(index, size))
        return False
    assert bytes(found[1]) == data_of(index, size)
    return True


def test_rows_in_use_are_not_thrown_out_for_others(tmp_path: Path) -> None:
    """Half of the rows fit: those that are there stay, epoch after epoch, instead of all of them going round."""
    limit = 6 * record_bytes(1010)
    rows = opened(tmp_path, limit)
    hits = [sum(use(rows, index) for index in range(10)) for _ in range(8)]
    assert hits == [0, 5, 5, 5, 5, 5, 5, 5]
    assert on_disk(tmp_path) <= limit


def test_rows_out_of_use_go_first_and_the_bound_holds(tmp_path: Path) -> None:
    limit = 14 * record_bytes(1010)
    rows = opened(tmp_path, limit)
    for _ in range(3):
        for index in range(10):
            use(rows, index)
    hits = []
    for _ in range(6):  # the device has other rows now, but for two of the old ones
        hits.append(sum(use(rows, index) for index in (0, 1, *range(20, 28))))
        assert on_disk(tmp_path) <= limit
    assert hits[-1] == 10
    assert {digest_of(0), digest_of(1), digest_of(20)} <= rows.file.rows.keys()
    assert digest_of(5) not in rows.file.rows


@settings(deadline=None, max_examples=60)
@given(uses=st.lists(st.integers(0, 25), max_size=120), limit=st.integers(0, 20), live=st.integers(1, 8))
def test_the_bound_holds_whatever_is_used(uses: list[int], limit: int, live: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        rows = FrontFolder(root, limit * 700).open(KEY, live)
        if rows is None:
            assert limit == 0
            return
        for index in uses:
            use(rows, index, size=400 + 20 * index)
            assert on_disk(root) <= max(limit * 700, 512)  # a key alone is smaller than that


def test_the_file_not_used_for_longest_makes_room(tmp_path: Path) -> None:
    folder = FrontFolder(tmp_path, 100_000)
    for age, sha in enumerate("cde"):
        rows = folder.open(msgspec.structs.replace(KEY, bundle_sha256=sha * 64), 10)
        assert rows is not None
        for index in range(20):
            use(rows, index, 1500)
        os.utime(rows.file.path, (1000 + age, 1000 + age))
        rows.close()
    left = {path.name[0] for path in tmp_path.glob("*.front")}
    assert left == {"c", "d", "e"}
    rows = folder.open(KEY, 10)
    assert rows is not None
    for index in range(10):
        use(rows, index, 1500)
    assert {path.name[0] for path in tmp_path.glob("*.front")} == {"a", "d", "e"}
    assert on_disk(tmp_path) <= 100_000


def test_two_processes_do_not_share_a_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = FrontFolder(tmp_path, 10_000)
    assert first.open(KEY, 10) is not None
    second = FrontFolder(tmp_path, 10_000)
    with caplog.at_level(logging.WARNING):
        assert second.open(KEY, 10) is None
        assert second.open(KEY, 10) is None
    assert caplog.text.count("another process uses this folder") == 1
    first.close()
    assert second.open(KEY, 10) is not None


def test_a_full_disk_costs_rows_and_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The limit of the process takes the place of the disk's: a real failing write in the middle of a row."""
    rows = opened(tmp_path, 1_000_000)
    for index in range(5):
        use(rows, index)
    size, (soft, hard) = rows.file.size, resource.getrlimit(resource.RLIMIT_FSIZE)
    with caplog.at_level(logging.WARNING):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 500, hard))
        try:
            assert not use(rows, 6)
            assert not use(rows, 6)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caplog.text.count("no more front activations are kept") == 1
    assert rows.file.path.stat().st_size == size
    assert all(use(rows, index) for index in range(5))
    rows.close()
    assert len(RowFile(rows.file.path, KEY.encode()).rows) == 5


def test_a_folder_that_cannot_be_made_keeps_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "fronts").write_text("a file")
    with caplog.at_level(logging.WARNING):
        assert FrontFolder(tmp_path / "fronts", 1000).open(KEY, 10) is None
    assert "front activations are not kept" in caplog.text


def test_nothing_is_kept_where_it_is_switched_off(tmp_path: Path) -> None:
    assert FrontFolder(tmp_path / "fronts", 0).open(KEY, 10) is None
    assert not (tmp_path / "fronts").exists()


def test_the_file_is_mapped_and_not_read(tmp_path: Path) -> None:
    """A file of 200 MB is opened, and one row of it read, with a few MB more of resident memory."""
    file = RowFile(tmp_path / "f", b"key")
    for index in range(100):
        file.add(digest_of(index), index, 0, bytes(2_000_000))
    file.close()
    code = (
        "import sys, resource; sys.path[:0] = sys.argv[2:]\n"
        "from pathlib import Path\nfrom test_front_files import RowFile, digest_of\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "file = RowFile(Path(sys.argv[1]), b'key')\n"
        "assert len(file.rows) == 100 and file.find(digest_of(50)) is not None\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    command = [sys.executable, "-c", code, str(file.path), str(Path(__file__).parent), str(Path.cwd())]
    assert int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) < 30_000
