"""Measuring: workers in processes of their own, asked in turn, so that both sides of a ratio see the same machine."""

from __future__ import annotations

import functools
import json
import os
import platform
import statistics
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parents[2]


class Worker:
    """A process that does one piece of work each time it is asked, and says how long it took.

    Args:
        kind: name of the work, see workers.py.
        settings: its arguments, as JSON.
    """

    def __init__(self, kind: str, settings: dict[str, Any]) -> None:
        threads = str(settings["threads"])
        environment = os.environ | {"OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "passive"}
        if "kernel" in settings:
            environment["COVEY_KERNEL"] = settings["kernel"]
        command = [sys.executable, "-m", "benchmarks.harness.workers", kind, json.dumps(settings)]
        self.kind = kind
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None  # noqa: S101
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the worker {self.kind!r} ended: exit code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, command: str = "run") -> dict[str, Any]:
        """Have the work done once; returns what the worker measured."""
        assert self._process.stdin is not None  # noqa: S101
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None  # noqa: S101
        self._process.stdin.close()
        self._process.wait()


def ratios(numerator: Sequence[float], denominator: Sequence[float]) -> dict[str, float]:
    """Return median, smallest and largest of the ratios, pair by pair."""
    pairs = [a / b for a, b in zip(numerator, denominator, strict=True)]
    return spread(pairs)


def paired(
    first: tuple[str, str], second: tuple[str, str], settings: dict[str, Any], repeats: int, clock: str = "seconds"
) -> tuple[list[float], list[float]]:
    """Return the seconds of two kinds of work, asked in turn; each is (worker, command).

    With ``clock = "cpu_s"`` they are CPU seconds: of one thread, what other work on the machine hardly changes.
    """
    workers = {kind: Worker(kind, settings) for kind, _ in dict.fromkeys((first, second))}
    seconds: dict[tuple[str, str], list[float]] = {first: [], second: []}
    for repeat in range(repeats):
        print(f"\r{first[0]} against {second[1]} {second[0]}: {repeat + 1} of {repeats} ", end="", file=sys.stderr)
        for kind, command in (first, second) if repeat % 2 else (second, first):
            seconds[kind, command].append(workers[kind].ask(command)[clock])
    print(file=sys.stderr)
    for worker in workers.values():
        worker.close()
    return seconds[first], seconds[second]


def peak_rss_mb(kind: str, settings: dict[str, Any]) -> list[float]:
    """Return the peak RSS of fresh processes after some runs."""
    return [memory["peak_rss_mb"] for memory in _answers(kind, settings)]


def memory_mb(kind: str, settings: dict[str, Any]) -> list[float]:
    """Return anonymous memory and the pages of mapped weights that were read, at their peak, of fresh processes.

    It is the peak RSS less the pages of code, and less what a process holds that has only loaded the libraries.
    """
    before = _libraries_mb(settings["rows"], settings["tokens"], settings["threads"])
    return [memory["peak_rss_mb"] - memory["code_mb"] - before for memory in _answers(kind, settings)]


@functools.cache
def _libraries_mb(rows: int, tokens: int, threads: int) -> float:
    settings = {"rows": rows, "tokens": tokens, "threads": threads}
    return min(float(memory["anonymous_mb"]) for memory in _answers("libraries", settings))


def _answers(kind: str, settings: dict[str, Any]) -> list[dict[str, Any]]:
    found = []
    for _ in range(3):
        worker = Worker(kind, settings)
        found.append([worker.ask() for _ in range(3)][-1])
        worker.close()
    return found


def run_export(model_dir: Path, out: Path, *flags: str, is_silent: bool = False) -> Path:
    """Export a model for reviews that are rotten or fresh, in a process of its own; returns the bundle's folder.

    Args:
        model_dir: what is exported.
        out: the bundle.
        flags: of ``covey export``.
        is_silent: its progress is not shown.
    """
    from server.samples.reviews import LABELS

    command = [
        sys.executable,
        "-m",
        "server.cli",
        "export",
        str(model_dir),
        "--labels",
        ",".join(LABELS),
        *flags,
        "--out",
        str(out),
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL if is_silent else None)
    return out


def report(results: dict[str, dict[str, float]], bounds: dict[str, float]) -> None:
    """Print each bounded result with its verdict."""
    for key, bound in bounds.items():
        found = results[key]
        verdict = "within" if found["median"] <= bound else "OVER"
        print(f"{key:32} {found['median']:8.3f}  ({found['min']:.3f} … {found['max']:.3f})  {verdict} {bound}")


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, smallest and largest."""
    return {
        "median": round(statistics.median(values), 4),
        "min": round(min(values), 4),
        "max": round(max(values), 4),
    }


def provenance(**more: Any) -> dict[str, Any]:  # noqa: ANN401 JSON values
    """Return what belongs to every measurement: commit, machine, versions."""
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    names = ("numpy", "onnxruntime", "torch", "transformers", "peft")
    return {
        "commit": git.stdout.strip() or None,
        "machine": platform.machine(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in names},
        **more,
    }


def _cpu_name() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)
