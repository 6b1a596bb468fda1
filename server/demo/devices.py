"""Describes the demo's devices: kind, level, seconds, bytes, and accuracy on held-out rows of their own movies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE
from rich.table import Table

from edge_runtime.agent.config import read_edge_config
from edge_runtime.bundle.adapter import map_adapter
from edge_runtime.bundle.layout import total_size
from edge_runtime.data.examples import DataConfig
from edge_runtime.data.rows import load_rows
from edge_runtime.engines.choose import Engines
from edge_runtime.store.personal import load_personal, with_personal
from edge_runtime.store.store import Store
from server.evaluation import evaluate
from server.storage.ledger import Ledger
from server.storage.ledger_address import LEDGER_FILE
from server.views.summary import job_devices

if TYPE_CHECKING:
    from edge_runtime.agent.config import EdgeConfig
    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.engines.bundle_engine import BundlePredictor
    from edge_runtime.values import FloatVector

OWN_TEST = 10
"""Every tenth row of a device is held out of its training, to test its own model."""
OWN_TEST_FILE = "own-test.jsonl"


def described_devices(bundle: Bundle, job: str, state_dir: Path, configs: dict[str, Path]) -> list[dict[str, Any]]:
    """Return for each device what it did (summary.job_devices) and its own_accuracy."""
    ledger = Ledger(state_dir / LEDGER_FILE, read_only=True)
    devices = job_devices(ledger, job)
    ledger.close()
    predictor = Engines().make_predictor(bundle)
    for row in devices:
        config = configs[row["device"]]
        row.update(own_accuracy(bundle, job, predictor, read_edge_config(config), config.with_name(OWN_TEST_FILE)))
    return devices


def own_accuracy(
    bundle: Bundle, job: str, predictor: BundlePredictor, config: EdgeConfig, test: Path
) -> dict[str, int | float | None]:
    """Return the accuracy of a device's adapter on held-out rows of its own.

    Args:
        bundle: a checked bundle.
        job: name of the job whose personal layers are used.
        predictor: runs the bundle.
        config: the device's configuration.
        test: the held-out rows.

    Returns:
        ``own_test_rows``; ``own_accuracy_shared`` with the shared adapter that the device ended on;
        ``own_accuracy_personal`` with its personal layers in it (PTLS, personalised transformer layer sharing), None
        where it has none.
    """
    store = Store(Path(config.state_dir))
    journal, rows = store.journal(), load_rows(bundle, DataConfig(str(test)))
    sha256 = journal.adapter_sha256 or bundle.initial_sha256
    theta = map_adapter(store.adapter_file(sha256), total_size(bundle.manifest.parameters))
    personal = load_personal(store, journal.personal_sha256, bundle, job)

    def accuracy(adapter: FloatVector) -> float:
        return round(evaluate(predictor, adapter, rows, len(bundle.manifest.task.labels)).accuracy, 4)

    return {
        "own_test_rows": len(rows),
        "own_accuracy_shared": accuracy(theta),
        "own_accuracy_personal": accuracy(with_personal(theta, personal, bundle)) if personal.layers else None,
    }


def device_table(devices: list[dict[str, Any]]) -> Table:
    """Return the devices as a table."""
    # Without lines between the columns, the names fit into 80 characters.
    table = Table(title="the devices; accuracy on held-out reviews of their own movies", box=SIMPLE)
    for column in (
        "device",
        "kind",
        "level",
        "seconds a round",
        "bytes up",
        "bytes down",
        "shared",
        "with own layers",
    ):
        named = column in ("device", "kind")
        longest = max(len(word) for word in column.split())
        table.add_column(column, justify="left" if named else "right", no_wrap=named, min_width=longest)
    for row in devices:
        personal = row["own_accuracy_personal"]
        table.add_row(
            row["device"],
            row["kind"],
            "" if row["level"] is None else str(row["level"]),
            f"{row['mean_seconds']:.1f}",
            f"{row['bytes_up']:.0f}",
            f"{row['bytes_down']:.0f}",
            f"{row['own_accuracy_shared']:.3f}",
            "" if personal is None else f"{personal:.3f}",
        )
    return table
