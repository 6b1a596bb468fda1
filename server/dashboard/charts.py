"""Charts as pages carry them: a table for everybody, the same figures as JSON for the script that draws them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edge_runtime.protocol.profile import Profile

_FEWEST_DECADES = 1.0


@dataclass(frozen=True)
class Chart:
    """Figures by round.

    Attributes:
        key: its name in the page.
        title: what it shows.
        unit: of all its lines.
        rounds: numbers of rounds, ascending; 0 is before the first.
        lines: by what they are, one value or None for each round.
    """

    key: str
    title: str
    unit: str
    rounds: list[int]
    lines: dict[str, list[float | None]]

    @property
    def json(self) -> str:
        """What the script draws."""
        return msgspec.json.encode({"unit": self.unit, "rounds": self.rounds, "lines": self.lines}).decode()

    @property
    def rows(self) -> list[tuple[int, list[float | None]]]:
        """The table: each round with its values."""
        return [(number, [line[at] for line in self.lines.values()]) for at, number in enumerate(self.rounds)]


def job_charts(
    summary: Mapping[str, Any], rounds: Sequence[Mapping[str, Any]], passes: Mapping[int, tuple[int, int]]
) -> list[Chart]:
    """Return the charts of a job.

    Args:
        summary: see views.summary.job_summary.
        rounds: every attempt, see views.summary.job_rounds; those that were aggregated count.
        passes: front and back passes by the index of a round.
    """
    made = [row for row in rounds if row["state"] == "aggregated"]
    numbers = [row["round"] + 1 for row in made]

    def column(name: str) -> list[float | None]:
        return [row[name] for row in made]

    forwards = [passes.get(row["round"], (None, None)) for row in made]
    return [
        Chart(
            "loss",
            "Loss",
            "nats",
            [0, *numbers],
            {
                "held-out, after the round": [summary["loss_start"], *column("loss")],
                "training, in the round": [None, *column("train_loss")],
            },
        ),
        Chart(
            "accuracy",
            "Held-out accuracy",
            "share of rows",
            [0, *numbers],
            {"after the round": [summary["accuracy_start"], *column("accuracy")]},
        ),
        Chart(
            "forwards",
            "Forward passes",
            "passes, all devices",
            numbers,
            {"front block": [front for front, _ in forwards], "back block": [back for _, back in forwards]},
        ),
        Chart(
            "bytes",
            "Bytes",
            "bytes, all devices",
            numbers,
            {"from devices": column("bytes_up"), "to devices": column("bytes_down")},
        ),
        Chart("seconds", "Time of local steps", "seconds", numbers, {"slowest device": column("slowest_s")}),
    ]


def arm_chart(bandit: Mapping[str, Any]) -> Chart:
    """Return how many devices were given each arm, by round; see views.bandit.bandit_shown."""
    rounds = bandit["round_list"]
    lines = {arm: [row["chosen"].get(arm, 0) for row in rounds] for arm in bandit["arms"]}
    return Chart("arms", "Chosen arms", "devices", [row["round"] + 1 for row in rounds], lines)


@dataclass(frozen=True)
class Bar:
    """One graph of a profile at one shape; ``width`` is its bar's share of the axis, 0 to 1, on a logarithmic scale."""

    graph: str
    engine: str
    shape: str
    median_s: float
    peak_rss_bytes: int | None
    width: float


def profile_bars(profile: Profile | None) -> list[Bar]:
    """Return a profile's graphs at their shapes, in its order; None: there is no profile."""
    if profile is None:
        return []
    timed = [(graph, latency) for graph in profile.graphs for latency in graph.latencies]
    logs = [math.log10(latency.median_s) for _, latency in timed]
    low = math.floor(min(logs, default=0.0))
    span = max(max(logs, default=0.0) - low, _FEWEST_DECADES)
    return [
        Bar(
            graph.name,
            graph.engine,
            f"{latency.batch_size}x{latency.tokens}",
            latency.median_s,
            graph.peak_rss_bytes,
            max((log - low) / span, 0.01),
        )
        for (graph, latency), log in zip(timed, logs, strict=True)
    ]
