"""The outermost wall: `main` ends every exception as one line, and nothing that is printed acts on a terminal."""

from __future__ import annotations

import argparse
import errno
import json
import stat
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime import output
from edge_runtime.errors import DataError, FaultError, ProtocolError, StorageError, TrainingError, as_covey_error, wall


def run_main(error: BaseException, *flags: str) -> int:
    parser = argparse.ArgumentParser(prog="covey-x")
    output.add_format(parser)

    def fail(_args: argparse.Namespace) -> int:
        raise error

    parser.set_defaults(run=fail)
    return output.main(parser, list(flags))


def test_a_fault_is_one_line_and_a_file_that_only_its_owner_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert run_main(KeyError("boom"), "--format", "json") == FaultError.exit_code == 70
    said = capsys.readouterr()
    assert said.err.startswith("covey-x: this is a fault of Covey ('boom')\n  what to do: please report it with ")
    assert said.err.count("\n") == 2
    assert "Traceback" not in said.err
    assert json.loads(said.out)["exit_code"] == 70
    (saved,) = tmp_path.iterdir()
    assert str(saved) in said.err
    assert "Traceback" in saved.read_text()
    assert "KeyError" in saved.read_text()
    assert stat.S_IMODE(saved.stat().st_mode) == 0o600


def test_a_fault_is_in_the_log_with_verbose_or_where_no_file_can_be_written(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(KeyError("boom"), "-v") == 70
    assert "Traceback" in caplog.text
    assert "traceback above" in capsys.readouterr().err
    caplog.clear()
    monkeypatch.setattr("tempfile.tempdir", "/nowhere/at/all")
    assert run_main(RecursionError("maximum recursion depth")) == 70
    assert "Traceback" in caplog.text


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (OSError(errno.EMFILE, "Too many open files"), 8, "no file descriptor left"),
        (OSError(errno.ENOSPC, "No space left", "/x/y"), 8, "disk full while writing /x/y"),
        (PermissionError(errno.EACCES, "Permission denied", "/x/y"), 8, "/x/y: Permission denied"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "/x/y"), 8, "/x/y: Is a directory"),
        (MemoryError(), 9, "too little free memory"),
        (DataError("the file is empty"), 4, "the file is empty"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_what_the_machine_lacks_is_no_fault_of_covey(
    error: BaseException, code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(error) == code
    said = capsys.readouterr().err
    assert words in said
    assert "fault of Covey" not in said


def test_a_wall_lets_coveys_own_errors_through() -> None:
    with pytest.raises(StorageError), wall(ProtocolError):
        raise StorageError("disk full")
    with pytest.raises(ProtocolError, match="ValueError"), wall(ProtocolError):
        raise ValueError
    with pytest.raises(KeyboardInterrupt), wall(ProtocolError):
        raise KeyboardInterrupt


def test_an_errors_public_text_never_quotes_an_exception() -> None:
    private = "private words"
    assert private not in FaultError(KeyError(private)).public
    assert isinstance(as_covey_error(MemoryError(private)), TrainingError)
    assert private not in as_covey_error(MemoryError(private)).public


@given(text=st.text())
def test_nothing_that_is_printed_acts_on_a_terminal(text: str) -> None:
    shown = output.printable(text)
    assert all(character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cs") for character in shown)
    assert "\n" not in output.one_line(text)
    shown.encode()


def test_tables_and_logs_escape_what_a_device_sent(capsys: pytest.CaptureFixture[str]) -> None:
    assert output.table(["device"], [["\x1b[2J\nroot"]]) == "device\n\\x1b[2J\\nroot"
    assert run_main(DataError("\x1b[2Jcleared")) == 4
    assert "\x1b" not in capsys.readouterr().err
