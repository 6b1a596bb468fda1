"""The results file of a comparison: one run per line of JSON; a run that is in the file is never repeated."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.harness.provenance import provenance

if TYPE_CHECKING:
    from pathlib import Path

Result = dict[str, Any]
"""What a run gave, together with the settings that identify it and its provenance: JSON values."""
Results = list[Result]


def read_results(path: Path) -> Results:
    """Return the results so far, oldest first; none where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def add_result(path: Path, result: Result) -> None:
    """Append a result."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(result) + "\n")


def matches(result: Result, wanted: dict[str, Any]) -> bool:
    """Return whether a result has all the wanted values."""
    return all(result.get(name) == value for name, value in wanted.items())


RunProgram = Callable[[Sequence[str], dict[str, Any]], Result]
"""Runs a program with settings, here or elsewhere; see run_program."""


def run_program(program: Sequence[str], settings: dict[str, Any], folder: Path | None = None) -> Result:
    """Run a program in a process of its own, and return its result with its provenance.

    Args:
        program: see find_or_run.
        settings: all settings, as JSON values.
        folder: where it runs; None: in this process's folder.
    """
    command = [sys.executable, *program, "--one", json.dumps(settings)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=folder).stdout
    return {**json.loads(output.splitlines()[-1]), **provenance()}


def find_or_run(
    path: Path, program: Sequence[str], key: dict[str, Any], more: dict[str, Any], run: RunProgram = run_program
) -> tuple[Result, float | None]:
    """Return a run's result, from the file or by running it.

    Args:
        path: the results file; a new result is appended.
        program: what Python runs (``-m`` and a module, or a script). It gets ``--one`` and the settings as JSON, and
            the last line of its output is the result.
        key: the settings that identify the run; they become part of its result.
        more: further settings that the program needs, such as paths.
        run: runs it.

    Returns:
        The result, and the seconds that the run took; None: it was in the file.
    """
    for result in read_results(path):
        if matches(result, key):
            return result, None
    started = time.monotonic()
    result = {**key, **run(program, {**key, **more})}
    add_result(path, result)
    return result, time.monotonic() - started


def print_run(label: str, result: Result, figure: str, seconds: float) -> None:
    """Print the progress line of a run that has just ended, to standard error.

    Args:
        label: what ran: its name, division, learning rate, seed and rows.
        result: its result.
        figure: one more figure of it.
        seconds: how long the run took.
    """
    print(
        f"{label}  loss {result['loss_start']:.4f} → {result['loss_end']:.4f}  "
        f"accuracy {result['accuracy_end']:.3f}  {figure}  {seconds:.0f} s",
        file=sys.stderr,
        flush=True,
    )
