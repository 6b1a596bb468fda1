"""Measures routines in worker processes. The two sides of a ratio alternate, so that both see the same machine."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

Routine = tuple[str, str]
"""A kind of worker and one of its routines, for example ``("step", "run")``."""


class Worker:
    """A process that runs one of its routines each time it is asked, and answers with the time and memory it took.

    Args:
        kind: the kind of worker; benchmarks/workers/process.py lists all.
        settings: the settings of its routines, as JSON values; ``threads`` must be among them. ``kernel`` chooses the
            perturbation kernel, as the environment variable ``COVEY_KERNEL`` does.

    Attributes:
        made: the process's memory when its routines were made, and before any was run: see own_memory_mb.
    """

    def __init__(self, kind: str, settings: dict[str, Any]) -> None:
        threads = str(settings["threads"])
        environment = os.environ | {"OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "passive"}
        if "kernel" in settings:
            environment["COVEY_KERNEL"] = settings["kernel"]
        command = [sys.executable, "-m", "benchmarks.workers.process", kind, json.dumps(settings)]
        self.kind = kind
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.made = self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None  # noqa: S101
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the worker {self.kind!r} ended with exit code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, routine: str = "run") -> dict[str, Any]:
        """Run a routine once.

        Returns:
            ``seconds`` and ``cpu_s`` of this run, and the process's memory after it: see own_memory_mb.
        """
        assert self._process.stdin is not None  # noqa: S101
        self._process.stdin.write(routine + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None  # noqa: S101
        self._process.stdin.close()
        self._process.wait()


def alternating(
    routines: Sequence[Routine], settings: dict[str, Any], repeats: int, clock: str = "seconds"
) -> dict[Routine, list[float]]:
    """Run routines one after the other, ``repeats`` times, in an order that reverses each time.

    Args:
        routines: what is measured; routines of one kind share a worker.
        settings: of all workers.
        repeats: measurements of each routine.
        clock: ``seconds``, or ``cpu_s`` for CPU seconds of the process. CPU seconds of one thread hardly depend on
            other work on the machine.

    Returns:
        The measured seconds of each routine, in the order of the repeats.
    """
    workers = {kind: Worker(kind, settings) for kind in dict.fromkeys(kind for kind, _ in routines)}
    seconds: dict[Routine, list[float]] = {routine: [] for routine in routines}
    shown = " against ".join(" ".join(routine) for routine in routines)
    for repeat in range(repeats):
        print(f"\r{shown}: {repeat + 1} of {repeats} ", end="", file=sys.stderr)
        for kind, name in routines if repeat % 2 else reversed(routines):
            seconds[kind, name].append(workers[kind].ask(name)[clock])
    print(file=sys.stderr)
    for worker in workers.values():
        worker.close()
    return seconds


def paired(
    first: Routine, second: Routine, settings: dict[str, Any], repeats: int, clock: str = "seconds"
) -> tuple[list[float], list[float]]:
    """Return the seconds of two routines that alternate: see alternating."""
    seconds = alternating((first, second), settings, repeats, clock)
    return seconds[first], seconds[second]


def memory_after(kind: str, settings: dict[str, Any], *, runs: int = 3, processes: int = 3) -> list[dict[str, Any]]:
    """Return what fresh worker processes answer after some runs of their routine ``run``, one answer per process."""
    answers = []
    for _ in range(processes):
        worker = Worker(kind, settings)
        answers.append([worker.ask() for _ in range(runs)][-1])
        worker.close()
    return answers


def peak_rss_mb(kind: str, settings: dict[str, Any]) -> list[float]:
    """Return the peak resident memory of fresh processes after some runs."""
    return [answer["peak_rss_mb"] for answer in memory_after(kind, settings)]


def alternating_peaks_mb(
    kinds: tuple[str, str], settings: dict[str, Any], runs: int
) -> tuple[list[float], list[float]]:
    """Return the peak resident memory of three fresh processes of each of two kinds, which alternate."""
    peaks: tuple[list[float], list[float]] = ([], [])
    for _ in range(3):
        for kind, found in zip(kinds, peaks, strict=True):
            (answer,) = memory_after(kind, settings, runs=runs, processes=1)
            found.append(answer["peak_rss_mb"])
    return peaks


def memory_mb(kind: str, settings: dict[str, Any], libraries: str = "libraries") -> list[float]:
    """Return the peak memory that the work of fresh processes takes: anonymous pages and pages of mapped weights.

    This is the peak resident memory without the pages of code, and without the anonymous memory of a process that has
    only loaded the libraries. What was done before the first run has its own peak, with the code of that moment.

    Args:
        kind: the kind of worker, with the routine ``run``.
        settings: see Worker; with ``rows`` and ``tokens``.
        libraries: the kind of worker that has loaded the same libraries and does nothing.
    """
    libraries_mb = _libraries_mb(libraries, settings["rows"], settings["tokens"], settings["threads"])
    found = []
    for _ in range(3):
        worker = Worker(kind, settings)
        answers = [worker.made, *(worker.ask() for _ in range(3))]
        worker.close()
        found.append(
            max(answer["peak_rss_mb"] - answer["code_mb"] for answer in (answers[0], answers[-1])) - libraries_mb
        )
    return found


@functools.cache
def _libraries_mb(kind: str, rows: int, tokens: int, threads: int) -> float:
    settings = {"rows": rows, "tokens": tokens, "threads": threads}
    return min(float(answer["anonymous_mb"]) for answer in memory_after(kind, settings))
