"""What a ledger says about jobs, rounds and devices, as plain values for tables and JSON."""

from __future__ import annotations

import collections
import itertools
import statistics
from typing import TYPE_CHECKING, Any

from server.errors import NoSuchJobError
from server.fleet.exclusion import excluded, rejections
from server.job.epsilon import device_epsilon
from server.storage import queries
from server.views.against import against_the_others, mean_cosines

if TYPE_CHECKING:
    from server.storage.ledger import Ledger


def job_list(ledger: Ledger) -> list[dict[str, Any]]:
    """Return the summary of every job (see job_summary), oldest first."""
    return [job_summary(ledger, name) for name in queries.job_names(ledger)]


def job_summary(ledger: Ledger, name: str) -> dict[str, Any]:
    """Return one job's summary. Losses and accuracies are held-out; bytes are means per report; unknown is None.

    Raises:
        JobError: there is no such job.
    """
    job = queries.find_job(ledger, name)
    if job is None:
        raise NoSuchJobError(name)
    done = [made for made in queries.rounds_of(ledger, name) if made.state == "aggregated"]
    evaluated = next((made for made in reversed(done) if made.loss is not None), None)
    traffic = queries.traffic_of(ledger, name)
    return {
        "job": name,
        "fleet": job.fleet,
        "state": job.state,
        "reason": job.reason,
        "priority": job.priority,
        "after": job.after,
        "bundle_sha256": job.bundle_sha256,
        "bundle_path": job.bundle_path,
        "rounds": len(done),
        "rounds_wanted": job.config["rounds"],
        "devices": traffic.devices,
        "reports": traffic.reports,
        "loss_start": job.loss_start,
        "loss_end": job.loss_start if evaluated is None else evaluated.loss,
        "accuracy_start": job.accuracy_start,
        "accuracy_end": job.accuracy_start if evaluated is None else evaluated.accuracy,
        "front_passes": traffic.front_passes or 0,
        "back_passes": traffic.back_passes or 0,
        "bytes_up_per_device_round": traffic.bytes_up,
        "bytes_down_per_device_round": traffic.bytes_down,
        "adapter_sha256": done[-1].result_sha256 if done else None,
        **_privacy(ledger, name, job.config),
        "result_dir": job.result_dir,
    }


def job_shown(ledger: Ledger, name: str) -> dict[str, Any]:
    """Return a job's summary with ``round_list`` (every attempt at every round), ``device_list``, and who stands out.

    ``rejected`` has the number of rejected contributions by device, ``excluded`` and ``against_the_others`` have the
    reason by device.

    Raises:
        NoSuchJobError: there is no such job.
    """
    summary = job_summary(ledger, name)
    offers = queries.rejections_of(ledger, name)
    after = (_config_of(ledger, name).get("robust") or {}).get("quarantine_after")
    agreement = queries.agreement_of(ledger, name)
    return {
        **summary,
        "round_list": job_rounds(ledger, name),
        "device_list": _with_agreement(job_devices(ledger, name), agreement),
        "rejected": rejections(offers),
        "excluded": excluded(offers, after),
        "against_the_others": against_the_others(agreement),
    }


def _config_of(ledger: Ledger, name: str) -> dict[str, Any]:
    """Return a job's configuration as JSON values; empty: there is no such job."""
    job = queries.find_job(ledger, name)
    return {} if job is None else job.config


def _with_agreement(devices: list[dict[str, Any]], agreement: list[dict[str, float]]) -> list[dict[str, Any]]:
    means = mean_cosines(agreement)
    return [{**device, "agreement": means.get(device["device"])} for device in devices]


def stands_out_text(shown: dict[str, Any]) -> str:
    """Return as text which devices of a shown job stand out, one per line; empty: none does."""
    lines = [f"{name}: {count} of its contributions were rejected" for name, count in shown["rejected"].items()]
    lines += [f"{name} is excluded from this job: {reason}" for name, reason in shown["excluded"].items()]
    lines += [f"{name} runs against the others: {reason}" for name, reason in shown["against_the_others"].items()]
    return "\n".join(lines)


def summary_text(summary: dict[str, Any]) -> str:
    """Return a job's summary as text, one field per line."""
    return "\n".join(f"{key:28} {'-' if value is None else value}" for key, value in summary.items())


def _privacy(ledger: Ledger, name: str, config: dict[str, Any]) -> dict[str, float | None]:
    """Return ε and δ of the device that was sent the most plans; None where the job is not private.

    Every plan that was sent counts, with the P2 that the device was given, even if its report came too late: ε is an
    upper bound.
    """
    if config.get("privacy") is None:
        return {"epsilon": None, "delta": None}
    releases: collections.Counter[str] = collections.Counter()
    for device, plan in queries.plans_offered(ledger, name):
        releases[device] += config["steps"] * plan.rule_of(device).scalars_per_step
    delta = config["privacy"]["delta"]
    most = max(releases.values(), default=0)
    return {"epsilon": device_epsilon(most, config["privacy"]["noise_multiplier"], delta), "delta": delta}


def job_rounds(ledger: Ledger, name: str) -> list[dict[str, Any]]:
    """Return every attempt at every round of a job, with its plan and its offers counted."""
    return [
        {
            "round": made.index,
            "attempt": made.attempt,
            "state": made.state,
            "offered": made.offered,
            "reports": made.reports,
            "slowest_s": made.slowest_s,
            "bytes_up": made.bytes_up,
            "bytes_down": made.bytes_down,
            "train_loss": made.train_loss,
            "loss": made.loss,
            "accuracy": made.accuracy,
            "adapter_sha256": made.result_sha256,
            "opened_at": made.opened_at,
            "closed_at": made.closed_at,
            "split": made.plan.split,
            "front_perturbations": made.plan.rule.front_perturbations,
            "back_perturbations": made.plan.rule.back_perturbations,
        }
        for made in queries.attempts_of(ledger, name)
    ]


def job_devices(ledger: Ledger, name: str) -> list[dict[str, Any]]:
    """Return what each device did in a job's aggregated rounds.

    ``kind`` and ``level`` are those of its last report; ``layers_sent`` counts layers over all its deltas; bytes are
    means per report, with the delta. Unknown is None.
    """
    devices = []
    for device, group in itertools.groupby(queries.counted_reports(ledger, name), key=lambda report: report.device):
        reports = list(group)
        peaks = [report.peak_rss_bytes for report in reports if report.peak_rss_bytes is not None]
        seconds = [report.seconds for report in reports if report.seconds is not None]
        sent = [len(report.layers) for report in reports if report.layers is not None]
        last = reports[-1]
        devices.append(
            {
                "device": device,
                "kind": "forward-only" if last.level is None else "backprop",
                "level": last.level,
                "reports": len(reports),
                "mean_seconds": statistics.fmean(seconds) if seconds else None,
                "bytes_up": statistics.fmean(report.bytes_up for report in reports),
                "bytes_down": statistics.fmean(report.bytes_down for report in reports),
                "layers_sent": sum(sent) if sent else None,
                "personal_layers": last.personal_layers,
                "peak_rss_bytes": max(peaks) if peaks else None,
                "train_loss": last.loss,
            }
        )
    return devices
