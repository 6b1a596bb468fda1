"""Compares profiles at the graphs and shapes that they share, and marks which times are modelled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edge_runtime import output
from edge_runtime.errors import ProfileError
from edge_runtime.protocol.profile_text import value_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_runtime.protocol.profile import Latency, Profile

Key = tuple[str, str, str]
_COLUMNS = ("graph", "engine", "shape", "profile", "source", "median_ms", "times_first", "peak_MB")


def compare(profiles: Sequence[tuple[str, Profile]]) -> list[dict[str, Any]]:
    """Return one row per graph, engine and shape that all profiles share, and profile.

    ``times_first`` is the median over the first profile's median.

    Args:
        profiles: names and profiles, all of one model.

    Raises:
        ProfileError: the profiles are of different models, or share no graph at a shape.
    """
    models = {(profile.bundle.model, profile.bundle.layers) for _, profile in profiles}
    if len(models) > 1:
        named = ", ".join(f"{name}: {profile.bundle.model}" for name, profile in profiles)
        raise ProfileError(f"profiles of different models cannot be compared ({named})", "measure one bundle on each")
    known = [times(profile) for _, profile in profiles]
    keys = [key for key in known[0] if all(key in other for other in known[1:])]
    if not keys:
        raise ProfileError("the profiles have no graph at a shape in common", "measure them with the same --shapes")
    rows = []
    for key in keys:
        first = known[0][key][0].median_s
        for (name, profile), of_profile in zip(profiles, known, strict=True):
            latency, peak = of_profile[key]
            graph, engine, shape = key
            rows.append(
                {
                    "graph": graph,
                    "engine": engine,
                    "shape": shape,
                    "profile": name,
                    "source": profile.source,
                    "median_s": latency.median_s,
                    "low_s": latency.low_s,
                    "high_s": latency.high_s,
                    "times_first": latency.median_s / first,
                    "peak_rss_bytes": peak,
                }
            )
    return rows


def times(profile: Profile) -> dict[Key, tuple[Latency, int | None]]:
    """Return latency and peak memory (bytes) of each graph, engine and shape, in the profile's order."""
    return {
        (graph.name, graph.engine, f"{latency.batch_size}x{latency.tokens}"): (latency, graph.peak_rss_bytes)
        for graph in profile.graphs
        for latency in graph.latencies
    }


def comparison_text(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as a table."""
    cells = [
        [
            row["graph"],
            row["engine"],
            row["shape"],
            row["profile"],
            row["source"],
            value_text(row["median_s"] * 1e3),
            f"{row['times_first']:.2f}",
            None if row["peak_rss_bytes"] is None else round(row["peak_rss_bytes"] / 1e6),
        ]
        for row in rows
    ]
    return output.table(_COLUMNS, cells)
