"""How what a swarm has seen is told: a line while it runs, and a summary at its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from server.swarm.counts import percentile

if TYPE_CHECKING:
    from server.swarm.swarm import Seen

_SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "most": 1.0}


def progress_line(seen: Seen) -> str:
    """Return where a swarm is, in one line."""
    counts = seen.counts
    parts = [
        f"{seen.seconds:.0f} s: {counts.connected} of {seen.devices} connected",
        f"{seen.reports_per_s:.0f} reports/s",
        f"{counts.acknowledged} answered",
        f"{counts.lost_reports} lost",
    ]
    if counts.trained or counts.abandoned:
        parts.append(f"{counts.trained} rounds trained, {counts.abandoned} given up")
    if counts.plans_refused:
        parts.append(f"{counts.plans_refused} plans refused: {seen.refusal}")
    if counts.lost_connections:
        parts.append(f"{counts.lost_connections} connections broke")
    if counts.refused_logins and counts.connected < seen.devices:
        kind, count = counts.refused_logins.most_common(1)[0]
        found = seen.causes.get(kind)
        parts.append(f"not let in {count} times: {found.finding if found is not None else kind}")
    return ", ".join(parts)


def result_of(seen: Seen) -> dict[str, Any]:
    """Return what a swarm has seen, for programs; durations in seconds, sizes in bytes of payloads."""
    counts = seen.counts
    ordered = sorted(counts.round_trips_s)
    busy_s = None
    if seen.first_report_s is not None and seen.last_report_s is not None:
        busy_s = seen.last_report_s - seen.first_report_s
    return {
        "devices": seen.devices,
        "devices_connected": counts.devices_connected,
        "all_connected_s": _rounded(seen.all_connected_s),
        "seconds": _rounded(seen.seconds),
        "logins": counts.connects,
        "lost_connections": counts.lost_connections,
        "refused_logins": dict(counts.refused_logins),
        "causes": [
            {"kind": cause.kind, "finding": cause.finding, "remedy": cause.remedy} for cause in seen.causes.values()
        ],
        "hellos": counts.hellos,
        "plans": counts.plans,
        "refusal": seen.refusal,
        "rounds_trained": counts.trained,
        "rounds_given_up": counts.abandoned,
        "training_s": _rounded(counts.training_s / counts.trained) if counts.trained else None,
        "plans_refused": counts.plans_refused,
        "reports": dict(counts.reports),
        "lost_reports": counts.lost_reports,
        "reports_per_s": _rounded(counts.acknowledged / busy_s) if busy_s else None,
        "most_reports_per_s": _rounded(seen.most_reports_per_s),
        "round_trip_s": {name: _rounded(percentile(ordered, share)) for name, share in _SHARES.items()},
        "proved": dict(counts.proved),
        "messages_up": counts.messages_up,
        "messages_down": counts.messages_down,
        "bytes_up": counts.bytes_up,
        "bytes_down": counts.bytes_down,
        "messages_refused": counts.refused,
        "left_open": counts.connected,
        "processes_killed": seen.killed,
    }


def summary_text(result: dict[str, Any]) -> str:
    """Return the same for people."""
    trip = ", ".join(f"{name} {value}" for name, value in result["round_trip_s"].items() if value is not None)
    reports = ", ".join(f"{count} {outcome}" for outcome, count in sorted(result["reports"].items()))
    lines = [
        f"{result['devices_connected']} of {result['devices']} sessions were connected, all of them after "
        f"{result['all_connected_s']} s"
        if result["all_connected_s"] is not None
        else f"{result['devices_connected']} of {result['devices']} sessions were connected, never all of them at once",
        f"connections that broke: {result['lost_connections']}",
        f"plans: {result['plans']}; reports: {reports or 'none'}; lost: {result['lost_reports']}",
        *_told_training(result),
        f"reports a second: {result['reports_per_s']}, at most {result['most_reports_per_s']}",
        f"seconds from plan to answered report: {trip or 'none'}",
        f"up: {result['messages_up']} messages, {result['bytes_up']} bytes",
        f"down: {result['messages_down']} messages, {result['bytes_down']} bytes, {result['messages_refused']} refused",
    ]
    if result["left_open"] or result["processes_killed"]:
        lines.append(
            f"{result['left_open']} sessions were still connected at the end: the broker did not take their goodbyes "
            f"in time, and publishes their last wills; {result['processes_killed']} processes had to be killed"
        )
    for cause in result["causes"]:
        count = result["refused_logins"].get(cause["kind"], 0)
        lines += [f"not let in {count} times: {cause['finding']}", f"  what to do: {cause['remedy']}"]
    return "\n".join(lines)


def _told_training(result: dict[str, Any]) -> list[str]:
    lines = []
    if result["rounds_trained"] or result["rounds_given_up"]:
        lines.append(
            f"rounds trained: {result['rounds_trained']}, of {result['training_s']} s each; "
            f"given up, too late or no longer wanted: {result['rounds_given_up']}"
        )
    if result["plans_refused"]:
        lines.append(f"plans refused: {result['plans_refused']}, the last one because {result['refusal']}")
    return lines


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
