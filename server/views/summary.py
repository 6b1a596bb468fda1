"""What a ledger says about jobs, rounds and devices, as plain values for tables and JSON."""

from __future__ import annotations

import collections
import itertools
import json
import statistics
from typing import TYPE_CHECKING, Any

import msgspec

from server.errors import JobError
from server.job.epsilon import device_epsilon
from server.storage.records import RoundPlan

if TYPE_CHECKING:
    from server.storage.ledger import Ledger


def job_list(ledger: Ledger) -> list[dict[str, Any]]:
    """Return every job: name, state, rounds done and wanted, loss and accuracy at start and now."""
    return [job_summary(ledger, row["name"]) for row in ledger.rows("SELECT name FROM jobs ORDER BY created_at, name")]


def job_summary(ledger: Ledger, name: str) -> dict[str, Any]:
    """Return one job's summary. Losses and accuracies are held-out; bytes are means over reports; None: not known.

    Raises:
        JobError: no such job.
    """
    jobs = ledger.rows("SELECT * FROM jobs WHERE name = ?", name)
    if not jobs:
        raise JobError(f"there is no job {name}", "see: covey job list")
    job = jobs[0]
    done = ledger.rows("SELECT * FROM rounds WHERE job = ? AND state = 'aggregated' ORDER BY round", name)
    last = done[-1] if done else {}
    told: dict[str, Any] = next((row for row in reversed(done) if row["loss"] is not None), {})
    traffic = ledger.rows(
        "SELECT count(*) AS reports, avg(o.bytes_up) AS up, avg(o.bytes_down) AS down, sum(o.front_passes) AS front, "
        "sum(o.back_passes) AS back, count(DISTINCT o.device) AS devices FROM offers o JOIN rounds r "
        "USING (job, round, attempt) WHERE o.job = ? AND o.state = 'reported' AND r.state = 'aggregated'",
        name,
    )[0]
    return {
        "job": name,
        "fleet": job["fleet"],
        "state": job["state"],
        "bundle_sha256": job["bundle_sha256"],
        "rounds": len(done),
        "rounds_wanted": json.loads(job["config"])["rounds"],
        "devices": traffic["devices"],
        "reports": traffic["reports"],
        "loss_start": job["loss_start"],
        "loss_end": told.get("loss", job["loss_start"]),
        "accuracy_start": job["accuracy_start"],
        "accuracy_end": told.get("accuracy", job["accuracy_start"]),
        "front_passes": traffic["front"] or 0,
        "back_passes": traffic["back"] or 0,
        "bytes_up_per_device_round": traffic["up"],
        "bytes_down_per_device_round": traffic["down"],
        "adapter_sha256": last.get("result_sha256"),
        **_privacy(ledger, name, json.loads(job["config"])),
        "result_dir": job["result_dir"],
    }


def _privacy(ledger: Ledger, name: str, config: dict[str, Any]) -> dict[str, float | None]:
    """Return ε and δ of the device that was asked most; None where the job is not private.

    Every plan that was sent counts, also one whose report came too late: an upper bound.
    """
    if config.get("privacy") is None:
        return {"epsilon": None, "delta": None}
    releases: collections.Counter[str] = collections.Counter()
    for row in ledger.rows(
        "SELECT o.device, r.plan FROM offers o JOIN rounds r USING (job, round, attempt) WHERE o.job = ?", name
    ):
        rule = msgspec.json.decode(row["plan"], type=RoundPlan).rule
        releases[row["device"]] += config["steps"] * rule.scalars_per_step
    delta = config["privacy"]["delta"]
    most = max(releases.values(), default=0)
    return {"epsilon": device_epsilon(most, config["privacy"]["noise_multiplier"], delta), "delta": delta}


def job_rounds(ledger: Ledger, name: str) -> list[dict[str, Any]]:
    """Return every attempt at every round of a job, with its plan, and its offers counted."""
    rows = ledger.rows(
        "SELECT r.round, r.attempt, r.state, count(o.device) AS offered, sum(o.state = 'reported') AS reports, "
        "max(o.seconds) AS slowest_s, sum(o.bytes_up) AS bytes_up, sum(o.bytes_down) AS bytes_down, r.plan, "
        "avg(o.loss) AS train_loss, r.loss, r.accuracy, r.result_sha256 AS adapter_sha256, r.opened_at, r.closed_at "
        "FROM rounds r LEFT JOIN offers o USING (job, round, attempt) WHERE r.job = ? "
        "GROUP BY r.round, r.attempt ORDER BY r.round, r.attempt",
        name,
    )
    for row in rows:
        plan = msgspec.json.decode(row.pop("plan"), type=RoundPlan)
        row |= {
            "split": plan.split,
            "front_perturbations": plan.rule.front_perturbations,
            "back_perturbations": plan.rule.back_perturbations,
        }
    return rows


def job_devices(ledger: Ledger, name: str) -> list[dict[str, Any]]:
    """Return what each device did in a job's aggregated rounds, by its last level; None: forward-only, or not known.

    ``layers_sent`` counts layers over all its deltas; bytes are means over its reports, the delta's included.
    """
    rows = ledger.rows(
        "SELECT o.device, o.level, o.seconds, o.bytes_up, o.bytes_down, o.layers, o.personal_layers, o.peak_rss_bytes, "
        "o.loss FROM offers o JOIN rounds r USING (job, round, attempt) "
        "WHERE o.job = ? AND o.state = 'reported' AND r.state = 'aggregated' ORDER BY o.device, o.round",
        name,
    )
    devices = []
    for device, group in itertools.groupby(rows, key=lambda row: row["device"]):
        reports = list(group)
        peaks = [row["peak_rss_bytes"] for row in reports if row["peak_rss_bytes"] is not None]
        sent = [len(json.loads(row["layers"])) for row in reports if row["layers"] is not None]
        last = reports[-1]
        devices.append(
            {
                "device": device,
                "kind": "forward-only" if last["level"] is None else "backprop",
                "level": last["level"],
                "reports": len(reports),
                "mean_seconds": statistics.fmean(row["seconds"] for row in reports),
                "bytes_up": statistics.fmean(row["bytes_up"] for row in reports),
                "bytes_down": statistics.fmean(row["bytes_down"] for row in reports),
                "layers_sent": sum(sent) if sent else None,
                "personal_layers": last["personal_layers"],
                "peak_rss_bytes": max(peaks) if peaks else None,
                "train_loss": last["loss"],
            }
        )
    return devices


def device_list(ledger: Ledger) -> list[dict[str, Any]]:
    """Return every device that ever announced itself, with what it said and what it did."""
    rows = ledger.rows(
        "SELECT d.fleet, d.name AS device, d.state, d.ineligible, d.birth, d.adapter_sha256, d.last_seen, "
        "count(o.job) AS reports, avg(o.seconds) AS mean_seconds FROM devices d "
        "LEFT JOIN offers o ON o.device = d.name AND o.state = 'reported' GROUP BY d.fleet, d.name "
        "ORDER BY d.fleet, d.name"
    )
    for row in rows:
        birth = json.loads(row.pop("birth") or "{}")
        row["machine"] = birth.get("machine")
        row["covey_version"] = birth.get("covey_version")
        row["runtimes"] = birth.get("runtimes")
        row["rows"] = birth.get("rows")
        row["training"] = birth.get("capability", {}).get("kind")
    return rows
