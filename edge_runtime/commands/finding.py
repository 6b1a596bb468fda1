"""A finding of a doctor: the result of one check, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from edge_runtime import output
from edge_runtime.errors import ConfigError, NetworkError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from edge_runtime.errors import CoveyError
    from edge_runtime.network.access import Access

Status = Literal["ok", "warning", "problem", "absent"]


@dataclass(frozen=True)
class Finding:
    """The result of a check.

    Attributes:
        check: its name.
        status: ``problem`` keeps the device (or server) from work, ``warning`` may do so, ``absent`` is missing but not
            needed.
        found: the result, for people.
        advice: what to do; empty: nothing.
        values: the result, for programs.
        exit_code: the command's exit code if this is the first problem.
    """

    check: str
    status: Status
    found: str
    advice: str = ""
    values: dict[str, Any] = field(default_factory=dict)
    exit_code: int = ConfigError.exit_code


def problem(check: str, error: CoveyError, values: dict[str, Any] | None = None) -> Finding:
    """Return an error as a finding: with its text, its hint and its exit code, as ``covey-edge run`` says it."""
    return Finding(check, "problem", error.what, error.hint, values or {}, error.exit_code)


def access_finding(access: Access, place: str, who: str) -> Finding:
    """Return what a broker lets a member do, as a finding.

    Args:
        access: what it lets it do.
        place: the broker.
        who: the member, in words: ``this device``.
    """
    kinds = [cause.kind for cause in access.causes]
    values = {"address": place, "reachable": not kinds or kinds[0] == "acl", "causes": kinds}
    if access.causes:
        remedies = dict.fromkeys(cause.remedy for cause in access.causes)
        found = "; ".join(cause.finding for cause in access.causes)
        return Finding("broker", "problem", found, "; ".join(remedies), values, NetworkError.exit_code)
    if not access.is_publishing_known:
        found = f"{place} lets {who} log in and subscribe; it has no MQTT 5 to ask about publishing"
        return Finding("broker", "ok", found, "", values)
    return Finding("broker", "ok", f"{place} lets {who} log in, subscribe and publish", "", values)


def emit_findings(args: argparse.Namespace, findings: Sequence[Finding]) -> int:
    """Print a doctor's findings; return exit code 0, or that of the first problem."""
    checks = [
        {"check": f.check, "status": f.status, "found": f.found, "advice": f.advice, **f.values} for f in findings
    ]
    rows = [(f.check, f.status, f.found + (f"\n{'':25}→ {f.advice}" if f.advice else "")) for f in findings]
    text = "\n".join(f"{check:13} {status:9} {found}" for check, status, found in rows)
    problems = [f for f in findings if f.status == "problem"]
    output.emit(args, {"healthy": not problems, "checks": checks}, text)
    return problems[0].exit_code if problems else 0
