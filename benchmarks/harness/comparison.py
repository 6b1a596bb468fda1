"""What comparisons of methods share: runs that are kept and not repeated, a job with its fleet in one process."""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness.provenance import provenance
from edge_runtime.agent.config import EdgeConfig
from edge_runtime.data.examples import DataConfig
from server.demo.run import toml
from server.serve import load_job
from server.simulation.in_process import run_in_process
from server.storage.ledger import LEDGER_FILE, Ledger

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from edge_runtime.bundle.folder import Bundle
    from server.job.job import Job

Results = list[dict[str, Any]]


def parser_of(description: str | None, models: Iterable[str], results: Path, workdir: Path) -> argparse.ArgumentParser:
    """Return a parser of what every comparison takes.

    Args:
        description: of the comparison.
        models: names that can be chosen.
        results: where runs are kept, unless it is said.
        workdir: where bundles and data are, unless it is said.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(models), default="minilm")
    parser.add_argument("--results", type=Path, default=results)
    parser.add_argument("--workdir", type=Path, default=workdir)
    parser.add_argument("--quick", action="store_true", help="three entries, one learning rate, one seed, fewer rounds")
    parser.add_argument("--summary", action="store_true", help="run nothing, print what the results say")
    parser.add_argument("--report", action="store_true", help="run nothing, write the picture, print Markdown tables")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser


def read_results(path: Path) -> Results:
    """Return the results so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def find_or_run(
    path: Path, program: Sequence[str], key: dict[str, Any], more: dict[str, Any]
) -> tuple[dict[str, Any], float | None]:
    """Return a run's result, from the file or by running it in a process of its own, and its seconds in that case.

    Args:
        path: JSON Lines; a new result is added.
        program: what Python runs (``-m`` and a module, or a script), with ``--one`` and JSON after it; the last line of
            its output is the result.
        key: what the run is known by; a part of its result.
        more: other settings that the program needs.
    """
    for result in read_results(path):
        if all(result.get(name) == value for name, value in key.items()):
            return result, None
    started = time.monotonic()
    command = [sys.executable, *program, "--one", json.dumps({**key, **more})]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    result = {**key, **json.loads(output.splitlines()[-1]), **provenance()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(result) + "\n")
    return result, time.monotonic() - started


@dataclass(frozen=True)
class FleetRun:
    """A job that has run; its files are there as long as fleet_run's block.

    Attributes:
        job: the job.
        bundle: its bundle.
        configs: the devices.
        ledger: the server's.
        summary: of the job.
        wall_s: seconds that all took together.
    """

    job: Job
    bundle: Bundle
    configs: Sequence[EdgeConfig]
    ledger: Ledger
    summary: dict[str, Any]
    wall_s: float


@contextlib.contextmanager
def fleet_run(
    root: Path, bundle: Path, fields: dict[str, Any], tables: Mapping[str, dict[str, Any]], devices: dict[str, Path]
) -> Iterator[FleetRun]:
    """Run one job with its whole fleet in this process: the real server, protocol and devices, one thread each.

    Args:
        root: where a temporary folder may be.
        bundle: the bundle's folder.
        fields: of ``job.toml``.
        tables: of its tables, by name.
        devices: each device's file of rows, by its name.
    """
    with tempfile.TemporaryDirectory(dir=root) as folder:
        path = Path(folder) / "job.toml"
        path.write_text(toml(fields) + "".join(f"[{name}]\n{toml(table)}" for name, table in tables.items()))
        job, opened = load_job(path, bundle)
        configs = [
            EdgeConfig(
                name=name,
                broker="mqtt://unused",
                threads=1,
                data=DataConfig(str(rows)),
                state_dir=str(Path(folder) / name),
            )
            for name, rows in devices.items()
        ]
        started = time.monotonic()
        summary = run_in_process(job, opened, Path(folder) / "server", configs)
        wall_s = time.monotonic() - started
        with contextlib.closing(Ledger(Path(folder) / "server" / LEDGER_FILE, read_only=True)) as ledger:
            yield FleetRun(job, opened, configs, ledger, summary, wall_s)


def first_at(curve: Sequence[Sequence[float]], column: int, wanted: float, *, is_rising: bool = False) -> float | None:
    """Return where a curve first reached a value: its first column, linear between points.

    Args:
        curve: points; what the value is looked for in comes first.
        column: of the value.
        wanted: the value.
        is_rising: it is reached from below; else from above.

    Returns:
        None where it was never reached.
    """
    before: Sequence[float] | None = None
    for point in curve:
        if point[column] == wanted or (point[column] > wanted) == is_rising:
            if before is None or before[column] == point[column]:
                return point[0]
            share = (before[column] - wanted) / (before[column] - point[column])
            return before[0] + (point[0] - before[0]) * share
        before = point
    return None
