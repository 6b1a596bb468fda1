"""Runs of a comparison on a Ray cluster; each is a process on a worker's machine, and its result comes back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.harness.provenance import ROOT
from benchmarks.harness.results import run_program
from server.ray_work.workers import Recipe, Shared, as_described

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.harness.results import Result, RunProgram
    from server.ray_work.workers import Workers


def run_described(program: Sequence[str], settings: dict[str, Any]) -> Result:
    """Run a program on a worker: see results.run_program."""
    return run_program(program, settings, ROOT)


def run_on(workers: Workers) -> RunProgram:
    """Return what makes a run on workers. Bundles, rows and this repository must be in the same place on all machines.

    Args:
        workers: the workers; threads may share them.
    """

    def run(program: Sequence[str], settings: dict[str, Any]) -> Result:
        pending = workers.submit(Recipe(as_described, Shared(tuple(program))), run_described, settings)
        result: Result = workers.result(pending)
        return result

    return run
