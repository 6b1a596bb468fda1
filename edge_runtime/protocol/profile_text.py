"""Shows a profile to people: a heading and a table, both of which say whether it was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from edge_runtime import output

if TYPE_CHECKING:
    from edge_runtime.protocol.profile import GraphProfile, Profile


def profile_text(profile: Profile) -> str:
    """Return a profile as a table with one line per graph and shape; each line says whether it was measured."""
    rows = [row for graph in profile.graphs for row in _graph_rows(graph, profile.source)]
    columns = (
        "graph",
        "engine",
        "source",
        "load_s",
        "peak_MB",
        "shape",
        "median_ms",
        "p10_ms",
        "p90_ms",
        "runs",
        "watts",
    )
    return f"{heading(profile)}\n\n{output.table(columns, rows)}"


def heading(profile: Profile) -> str:
    """Return which device and bundle a profile describes, and whether it was measured or modelled."""
    facts, measured, modelled = profile.facts, profile.measured, profile.modelled
    lines = [
        f"{facts.board}: {profile.source.upper()}"
        + (
            f" {measured.measured_at}, Covey {measured.covey_version}" if measured is not None else ", nothing here ran"
        ),
        f"  board   {', '.join(str(x) for x in (facts.model, facts.cpu, facts.os) if x) or '-'}",
        f"  bundle  {profile.bundle.sha256[:12]} {profile.bundle.model}, {profile.bundle.layers} layers",
    ]
    if modelled is not None:
        lines.append(f"  formula {modelled.formula}")
        lines += [f"  source  {x.what}: {x.value:g} {x.unit}".rstrip() + f", {x.url}" for x in modelled.sources]
        lines += [f"  assumed {text}" for text in modelled.assumptions]
    if measured is not None:
        before, after = measured.before, measured.after
        lines.append(
            f"  heat    {value_text(before.temperature_c)} → {value_text(after.temperature_c)} °C, throttled "
            f"{value_text(before.throttled)} → {value_text(after.throttled)}"
        )
        if measured.execution_providers:
            lines.append(f"  on      {', '.join(measured.execution_providers)}")
        lines.append(f"  load    {value_text(before.load)} → {value_text(after.load)} runnable processes per core")
    rates = msgspec.structs.asdict(profile.rates)
    lines.append("  rates   " + ", ".join(f"{name} {value_text(value)}" for name, value in rates.items()))
    if profile.slowdown > 1:
        lines.append(f"  under thermal load {profile.slowdown:.2f} times as slow")
    return "\n".join(lines)


def _graph_rows(graph: GraphProfile, source: str) -> list[list[object]]:
    peak = None if graph.peak_rss_bytes is None else round(graph.peak_rss_bytes / 1e6)
    head: list[object] = [graph.name, graph.engine, source, value_text(graph.load_s), peak]
    if not graph.latencies:
        return [[*head, (graph.note or "not measured").splitlines()[0], None, None, None, None, None]]
    return [
        [
            *head,
            f"{x.batch_size}x{x.tokens}",
            value_text(x.median_s * 1e3),
            *(value_text(None if q is None else q * 1e3) for q in (x.low_s, x.high_s)),
            x.count,
            value_text(x.power_w),
        ]
        for x in graph.latencies
    ]


def value_text(value: float | None) -> str:
    """Return a figure with three digits, or ``-`` where it is unknown."""
    return "-" if value is None else str(value).lower() if isinstance(value, bool) else f"{value:.3g}"
