"""Lines of the log as JSON: asked for by a flag or by the environment, one object a line whatever a message quotes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path


def run(folder: Path, *flags: str, **environment: str) -> tuple[int, list[str]]:
    """Run a command that logs a warning and ends with an error; return its exit code and the lines of stderr."""
    program = """
import argparse, logging, sys
from edge_runtime.errors import DataError
from edge_runtime.output import add_format, main
def work(args):
    logging.getLogger("edge_runtime.x").warning('a "quote", a tab\\t, \\x1b[2J and\\na second line of %s', "Zoë")
    raise DataError("the file is empty", "write rows")
parser = argparse.ArgumentParser(prog="covey-x")
add_format(parser)
parser.set_defaults(run=work)
sys.exit(main(parser, sys.argv[1:]))
"""
    clean = {key: value for key, value in os.environ.items() if key != "COVEY_LOG_FORMAT"}
    done = subprocess.run(
        [sys.executable, "-c", program, *flags],
        cwd=folder,
        env={**clean, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr.splitlines()


@pytest.mark.parametrize("by_flag", [True, False])
def test_each_line_is_an_object(tmp_path: Path, *, by_flag: bool) -> None:
    code, lines = run(tmp_path, "--log-format", "json") if by_flag else run(tmp_path, COVEY_LOG_FORMAT="json")
    assert code == 4
    warning, error = (json.loads(line) for line in lines)
    assert warning["message"] == 'a "quote", a tab\t, \x1b[2J and\na second line of Zoë'
    assert (warning["level"], warning["logger"]) == ("WARNING", "edge_runtime.x")
    assert datetime.fromisoformat(warning["time"]).tzinfo == timezone.utc
    assert (error["level"], error["message"]) == ("ERROR", "the file is empty")
    assert (error["hint"], error["exit_code"]) == ("write rows", 4)


def test_the_flag_comes_before_the_environment_and_a_wrong_value_is_named(tmp_path: Path) -> None:
    code, lines = run(tmp_path, "--log-format", "text", COVEY_LOG_FORMAT="json")
    assert (code, lines[-2]) == (4, "covey-x: the file is empty")
    code, lines = run(tmp_path, COVEY_LOG_FORMAT="yaml")
    assert code == 2
    assert lines[-1].endswith("COVEY_LOG_FORMAT is 'yaml'; it can be text or json")
