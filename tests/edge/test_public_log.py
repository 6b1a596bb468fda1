"""What of a device's log may leave it, and how the last lines are kept: nothing private, bounded, whole lines only."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_runtime.agent.kept_log import _MOST_IN_FILE, LOG_FILE, RUNNING_FILE, KeptLog, keeping_log
from edge_runtime.agent.public_log import public_line
from edge_runtime.errors import BundleError, DataError, FaultError
from edge_runtime.protocol.side_messages import LONGEST_LINE, MOST_LINES

HOME = "/home/ada"
PRIVATE = "words-of-a-row"


def record(words: str, *arguments: Any, name: str = "edge_runtime.agent.agent", fault: bool = False) -> Any:
    trace = (KeyError, KeyError(PRIVATE), None) if fault else None
    return logging.LogRecord(name, logging.INFO, "file.py", 1, words, arguments, trace)


def line(words: str, *arguments: Any, **more: Any) -> str | None:
    return public_line(record(words, *arguments, **more), HOME)


@pytest.mark.parametrize(
    ("shown", "words", "arguments"),
    [
        ("round 3: loss 0.5", "round %d: loss %s", (3, 0.5)),
        ("of None, True", "of %s, %s", (None, True)),
        ("failed: 2 of 4 rows", "failed: %s", (DataError(PRIVATE, PRIVATE, "2 of 4 rows"),)),
        ("failed: this is a fault of Covey (KeyError)", "failed: %s", (FaultError(KeyError(PRIVATE)),)),
        ("failed: KeyError", "failed: %s", (KeyError(PRIVATE),)),
        ("failed: FileNotFoundError", "failed: %s", (OSError(2, PRIVATE),)),
        ("a (on the device only)", "a %s", ([PRIVATE],)),
        ("a (on the device only)", "a %s", ({"x": PRIVATE},)),
        ("a (on the device only)", "a %s", (PRIVATE.encode(),)),
        ("at mqtt://…@host:1883", "at %s", ("mqtt://pi:se/c@ret@host:1883",)),
        ("at https://…@host/blobs", "at https://key@host/blobs", ()),
        ("in ~/covey/journal.json", "in %s", (Path("/home/ada/covey/journal.json"),)),
        ("in ~ and /home/adam/x", "in %s and %s", ("/home/ada", "/home/adam/x")),
        ("a\\x1b[2J\\nb", "a%s", ("\x1b[2J\nb",)),
        ("%d rows", "%d rows", (KeyError(PRIVATE),)),
        ("(on the device only): 3 rows", "%s: %d rows", (PRIVATE, 3)),
    ],
)
def test_what_may_leave(shown: str, words: str, arguments: tuple[Any, ...]) -> None:
    name = "edge_runtime.data.rows" if "3 rows" in shown else "edge_runtime.store.adapters"
    said = line(words, *arguments, name=name)
    assert said is not None
    assert said.startswith(shown)
    assert PRIVATE not in said


def test_other_libraries_and_tracebacks_stay() -> None:
    assert line("%s", PRIVATE, name="urllib3") is None
    assert line(f"{PRIVATE}", name="edge_runtime.output") == "(on the device only)"
    assert line("%s", PRIVATE, name="edge_runtime.output") == "(on the device only)"
    said = line("it failed", fault=True)
    assert said == "it failed (the traceback is on the device)"


@given(st.text(max_size=3000), st.sampled_from(["%s", "a %s b", "%d %s"]))
def test_any_text_is_one_short_line(text: str, words: str) -> None:
    said = line(words, *(["x"] * (words.count("%") - 1)), text)
    assert said is not None
    assert len(said) <= LONGEST_LINE + 1
    assert "\n" not in said
    assert "\x1b" not in said


# -- what is kept ---------------------------------------------------------------------------------------------------


def fill(folder: Path, count: int, first: int = 0) -> KeptLog:
    kept = KeptLog(folder, clock=lambda: 5.0)
    for number in range(first, first + count):
        kept.handle(record("line %d", number))
    return kept


def test_the_last_lines_outlive_the_process_and_their_numbers_go_on(tmp_path: Path) -> None:
    fill(tmp_path, MOST_LINES + 7)
    kept = fill(tmp_path, 3, first=1000)
    texts = [kept.text for kept in kept.lines()]
    assert texts[-4:] == [f"line {MOST_LINES + 6}", "line 1000", "line 1001", "line 1002"]
    assert len(texts) == MOST_LINES
    numbers = [line.number for line in kept.lines()]
    assert numbers == list(range(numbers[0], numbers[0] + MOST_LINES))
    assert kept.before_crash == []


def test_the_file_is_bounded(tmp_path: Path) -> None:
    fill(tmp_path, 5 * _MOST_IN_FILE)
    assert len((tmp_path / LOG_FILE).read_text().splitlines()) <= _MOST_IN_FILE


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 2000), junk=st.binary(max_size=30))
def test_whatever_a_power_cut_leaves_whole_lines_are_read_and_it_goes_on(tmp_path: Path, cut: int, junk: bytes) -> None:
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    fill(tmp_path, 20)
    whole = (tmp_path / LOG_FILE).read_bytes()
    (tmp_path / LOG_FILE).write_bytes(whole[:cut] + junk.replace(b"\n", b""))
    kept = fill(tmp_path, 1, first=99)
    expected = whole[:cut].count(b"\n")
    assert [line.text for line in kept.lines()] == [*(f"line {n}" for n in range(expected)), "line 99"]
    assert [line.text for line in KeptLog(tmp_path).lines()] == [line.text for line in kept.lines()]


@pytest.mark.parametrize("content", [b"\xff\xfe\n\n", b"[" * 5000 + b"\n", b'{"number": -1}\n', b"null\n" * 3])
def test_what_is_no_log_is_passed_over(tmp_path: Path, content: bytes) -> None:
    (tmp_path / LOG_FILE).write_bytes(content)
    assert [line.text for line in fill(tmp_path, 2).lines()] == ["line 0", "line 1"]


def test_a_disk_that_takes_nothing_does_not_end_the_device(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    kept = fill(folder, 2)
    shutil.rmtree(folder)
    folder.write_text("a file where the folder was")
    kept.handle(record("line %d", 2))
    assert len(kept.lines()) == 3


def test_only_an_unclean_end_is_a_crash(tmp_path: Path) -> None:
    logger = logging.getLogger("edge_runtime.agent.agent")
    with keeping_log(tmp_path) as kept:
        logger.warning("line %d", 1)
        assert kept.before_crash == []
    with keeping_log(tmp_path) as kept:
        assert kept.before_crash == []
        (tmp_path / RUNNING_FILE).rename(tmp_path / "kept")
    (tmp_path / "kept").rename(tmp_path / RUNNING_FILE)  # as a process leaves it that is killed
    with pytest.raises(BundleError), keeping_log(tmp_path) as kept:
        assert [line.text for line in kept.before_crash] == ["line 1"]
        raise BundleError("the bundle is gone")
    with pytest.raises(KeyboardInterrupt), keeping_log(tmp_path) as kept:
        assert kept.before_crash[-1].text == "the process ends: the bundle is gone"
        raise KeyboardInterrupt
    with keeping_log(tmp_path) as kept:
        assert kept.before_crash == []
