"""Runs one job with its whole fleet in this process: the real server, protocol and devices, over temporary files."""

from __future__ import annotations

import contextlib
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness.curves import point
from edge_runtime.agent.config import EdgeConfig
from edge_runtime.data.examples import DataConfig
from edge_runtime.device.memory import peak_rss_bytes
from server.samples.toml_text import toml
from server.serving.loaded_job import load_job
from server.simulation.in_process import run_in_process
from server.storage.ledger import Ledger
from server.storage.ledger_address import LEDGER_FILE
from server.views.summary import job_rounds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from benchmarks.harness.curves import Curve
    from edge_runtime.bundle.folder import Bundle
    from server.job.fitted import FittedJob

JOB = "run"
"""The name of the job."""


@dataclass(frozen=True)
class FleetRun:
    """A job that has run. Its files exist until the block of fleet_run ends.

    Attributes:
        fitted: the job, fitted to its bundle.
        bundle: its bundle.
        configs: the devices' configurations.
        ledger: the server's ledger.
        summary: the job's summary.
        wall_s: seconds that server and devices took together.
    """

    fitted: FittedJob
    bundle: Bundle
    configs: Sequence[EdgeConfig]
    ledger: Ledger
    summary: dict[str, Any]
    wall_s: float

    def start_and_end(self) -> dict[str, float]:
        """Return held-out loss and accuracy at the start and at the end."""
        return {
            key: round(self.summary[key], 5) for key in ("loss_start", "loss_end", "accuracy_start", "accuracy_end")
        }

    def curve(self, spent: Callable[[int], float]) -> Curve:
        """Return a point per evaluation; ``spent`` gives what was spent until a round (from 0) had closed."""
        return [point(spent(row["round"]), row["loss"], row["accuracy"]) for row in self._evaluated()]

    def evaluated_rounds(self) -> list[int]:
        """Return the rounds (from 0) after which there was an evaluation: those of the curve's points."""
        return [row["round"] for row in self._evaluated()]

    def _evaluated(self) -> list[dict[str, Any]]:
        return [row for row in job_rounds(self.ledger, JOB) if row["loss"] is not None]


@contextlib.contextmanager
def fleet_run(
    root: Path, bundle: Path, fields: dict[str, Any], tables: Mapping[str, dict[str, Any]], devices: dict[str, Path]
) -> Iterator[FleetRun]:
    """Run one job to its end.

    Args:
        root: a folder in which a temporary folder is made.
        bundle: the bundle's folder.
        fields: fields of ``job.toml``, without its name.
        tables: the tables of ``job.toml``, by name.
        devices: each device's file of rows, by the device's name.
    """
    with tempfile.TemporaryDirectory(dir=root) as folder:
        path = Path(folder) / "job.toml"
        path.write_text(job_toml({"name": JOB, **fields}, tables))
        fitted, opened = load_job(path, bundle)
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
        summary = run_in_process(fitted, opened, Path(folder) / "server", configs)
        wall_s = time.monotonic() - started
        with contextlib.closing(Ledger(Path(folder) / "server" / LEDGER_FILE, read_only=True)) as ledger:
            yield FleetRun(fitted, opened, configs, ledger, summary, wall_s)


def job_toml(fields: dict[str, Any], tables: Mapping[str, dict[str, Any]]) -> str:
    """Return the text of a ``job.toml``: its fields, then its tables by name."""
    return toml(fields) + "".join(f"[{name}]\n{toml(table)}" for name, table in tables.items())


def cost_of_process(wall_s: float) -> dict[str, float]:
    """Return the seconds of a run, and the peak resident memory of this process in MiB.

    In a fleet run that is the memory of server, evaluation and all devices together.
    """
    return {"wall_s": round(wall_s, 1), "peak_rss_mb": round(peak_rss_bytes() / 2**20, 1)}
