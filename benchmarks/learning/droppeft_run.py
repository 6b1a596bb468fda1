"""One run of droppeft.py: a job with its fleet, evaluated on the held-out rows and on the devices' own test rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness.division import device_names, held_out_file, rows_file
from benchmarks.harness.fleet_run import JOB, cost_of_process, fleet_run
from benchmarks.harness.spent import spent_by_round
from benchmarks.learning.droppeft_rows import own_test_file
from benchmarks.learning.droppeft_variants import BACKPROP_DEVICES, COHORTS
from edge_runtime.bundle.levels import forward_passes
from edge_runtime.engines.choose import Engines
from server.demo.devices import own_accuracy
from server.views.summary import job_devices

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.harness.fleet_run import FleetRun
    from edge_runtime.agent.config import EdgeConfig
    from edge_runtime.bundle.folder import Bundle

KINDS = ("backprop", "forward-only")
FORWARD_STEPS, FORWARD_ROWS = 4, 16
"""Local steps of a forward-only device per round, and rows of each."""


def run_one(settings: dict[str, Any]) -> dict[str, Any]:
    """Run one job: the settings are the run's key in the results file, and the paths; ``job``: further fields of it."""
    root = Path(settings["root"])
    rows = root / settings["division"]
    members, tables = members_of(settings["fleet"]), tables_of(settings)
    cohort = COHORTS[settings["fleet"]]
    fields = {
        "eval_file": str(held_out_file(root, settings["rows"])),
        "rounds": settings["rounds"],
        "seed": settings["seed"],
        "cohort": cohort,
        "min_reports": cohort,
        "min_devices": len(members),
        "steps": FORWARD_STEPS,
        "batch_size": FORWARD_ROWS,
        "eval_every": settings["eval_every"],
        **settings.get("job", {}),
    }
    devices = {name: rows_file(rows, name) for name in members}
    with fleet_run(root, root / settings["bundle"], fields, tables, devices) as ran:
        curve = ran.curve(lambda index: index + 1)
        reports = job_devices(ran.ledger, JOB)
        own = own_accuracies(ran.bundle, ran.configs, rows)
        passes = row_passes(ran, reports)
    return {
        **ran.start_and_end(),
        **own,
        "curve": curve,
        "row_passes": passes,
        "bytes_up": {kind: _mean_bytes(reports, kind, "bytes_up") for kind in KINDS},
        "bytes_down": {kind: _mean_bytes(reports, kind, "bytes_down") for kind in KINDS},
        **cost_of_process(ran.wall_s),
    }


def members_of(fleet: str) -> list[str]:
    """Return the names of a fleet's devices; the first ones of the hybrid fleet backpropagate."""
    names = device_names()
    return {"few-backprop": names[:BACKPROP_DEVICES], "forward": names[BACKPROP_DEVICES:]}.get(fleet, names)


def tables_of(settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the tables of ``job.toml``: each device of the fleet has the level of its kind, 0 for forward-only."""
    tables = {"step": settings["step"]}
    fleet = settings["fleet"]
    if fleet == "forward":
        return tables
    forward = members_of("forward") if fleet == "hybrid" else []
    levels = {name: 0 if name in forward else settings["level"] for name in members_of(fleet)}
    return {**tables, "stld": settings["stld"], "stld.device_levels": levels}


def own_accuracies(bundle: Bundle, configs: Sequence[EdgeConfig], rows: Path) -> dict[str, float | None]:
    """Return the devices' mean accuracy on their own test rows, where each row weighs the same.

    Returns:
        ``own_accuracy_shared``: with the shared adapter. ``own_accuracy_personal``: with personal layers, where a
        device has some; None where no device has any. ``own_accuracy``: the latter where there is one.
    """
    predictor = Engines(threads=1).make_predictor(bundle)
    total, right_shared, right_own, is_personal = 0, 0.0, 0.0, False
    for config in configs:
        found = own_accuracy(bundle, JOB, predictor, config, own_test_file(rows, config.name))
        count = int(found["own_test_rows"] or 0)
        shared, personal = found["own_accuracy_shared"] or 0.0, found["own_accuracy_personal"]
        total += count
        right_shared += count * shared
        right_own += count * (shared if personal is None else personal)
        is_personal |= personal is not None
    return {
        "own_accuracy_shared": round(right_shared / total, 4),
        "own_accuracy_personal": round(right_own / total, 4) if is_personal else None,
        "own_accuracy": round((right_own if is_personal else right_shared) / total, 4),
    }


def row_passes(ran: FleetRun, reports: list[dict[str, Any]]) -> dict[str, int]:
    """Return the passes of a row through the whole model in all reports, by kind of device.

    A backward pass counts as two, a pass of the front by its share of the layers. Rows whose activation was looked up
    are not run.
    """
    fitted, layers = ran.fitted, ran.fitted.manifest.model.layers
    spent = spent_by_round(ran, layers)
    backprop = 0.0
    if fitted.job.stld is not None:
        mine = [row for row in reports if row["kind"] == "backprop"]
        passes = sum(row["reports"] * forward_passes(row["level"], layers) for row in mine)
        backprop = fitted.job.stld.steps * fitted.job.stld.batch_size * passes
    forward = spent[max(spent)].forwards * fitted.job.batch_size
    return {"backprop": round(backprop), "forward-only": round(forward)}


def _mean_bytes(devices: list[dict[str, Any]], kind: str, key: str) -> int | None:
    """Return a byte count's mean over the reports of the devices of a kind; None: the fleet has no such device."""
    mine = [row for row in devices if row["kind"] == kind]
    reports = sum(row["reports"] for row in mine)
    return round(sum(row["reports"] * row[key] for row in mine) / reports) if reports else None
