"""Plots of a job's course as SVG, which is put into the page as it is."""

from __future__ import annotations

import collections
import io
import statistics
from typing import TYPE_CHECKING, Any

from edge_runtime.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from matplotlib.axes import Axes

    Rows = Sequence[dict[str, Any]]

MOST_LINES = 12
"""With more devices than that, their times are a band in place of a line each."""


def plots_of(history: dict[str, Any]) -> dict[str, str]:
    """Return SVG pictures by their titles; one for which nothing is known is left out.

    Args:
        history: what server.views.history says of a job.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    made = [row for row in history["round_list"] if row["state"] == "aggregated"]
    counted = {(row["round"], row["attempt"]) for row in made}
    offers = [offer for offer in history["offer_list"] if (offer["round"], offer["attempt"]) in counted]
    arms = [arm for arm in history["arm_list"] if (arm["round"], arm["attempt"]) in counted]
    evaluated = [row for row in made if row["loss"] is not None]
    timed = [offer for offer in offers if offer["seconds"] is not None]
    drawn: list[tuple[str, Rows, Callable[[Axes], None]]] = [
        ("Loss", made, lambda axes: _losses(axes, made, evaluated, history["loss_start"])),
        ("Held-out accuracy", [row for row in made if row["accuracy"] is not None], lambda axes: _accuracy(axes, made)),
        ("Seconds of local steps, by device", timed, lambda axes: _seconds(axes, timed)),
        ("Bytes, by round", made, lambda axes: _bytes(axes, made)),
        ("Chosen arms, by round", arms, lambda axes: _arms(axes, arms)),
    ]
    return {title: _svg(draw) for title, rows, draw in drawn if rows}


def _svg(draw: Callable[[Axes], None]) -> str:
    try:
        import matplotlib as mpl  # noqa: PLC0415 an extra
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError("a report's plots need matplotlib", "pip install 'covey[plot]'") from error
    text = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "covey", "font.size": 9}):
        figure = Figure(figsize=(7, 3.2))
        axes = figure.add_subplot()
        draw(axes)
        axes.grid(alpha=0.3)
        axes.set_xlabel("round")
        figure.tight_layout()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def _losses(axes: Axes, made: Rows, evaluated: Rows, start: float | None) -> None:
    """Draw held-out loss after each round (0: before the first), and the mean training loss in it."""
    held_out = [(0, start)] if start is not None else []
    held_out += [(row["round"] + 1, row["loss"]) for row in evaluated]
    if held_out:
        axes.plot(*zip(*held_out, strict=True), marker="o", markersize=3, label="held-out, after the round")
    trained = [(row["round"] + 1, row["train_loss"]) for row in made if row["train_loss"] is not None]
    if trained:
        axes.plot(*zip(*trained, strict=True), marker=".", markersize=3, alpha=0.6, label="training, in the round")
    axes.set_ylabel("nats")
    axes.legend()


def _accuracy(axes: Axes, made: Rows) -> None:
    points = [(row["round"] + 1, row["accuracy"]) for row in made if row["accuracy"] is not None]
    axes.plot(*zip(*points, strict=True), marker="o", markersize=3)
    axes.set_ylabel("share of rows")


def _seconds(axes: Axes, timed: Rows) -> None:
    by_device: dict[str, list[tuple[int, float]]] = collections.defaultdict(list)
    for offer in timed:
        by_device[offer["device"]].append((offer["round"] + 1, offer["seconds"]))
    if len(by_device) <= MOST_LINES:
        for device, points in sorted(by_device.items()):
            axes.plot(*zip(*sorted(points), strict=True), marker=".", markersize=4, label=device.replace("$", r"\$"))
        axes.legend(fontsize=7, ncols=2)
    else:
        by_round: dict[int, list[float]] = collections.defaultdict(list)
        for points in by_device.values():
            for index, seconds in points:
                by_round[index].append(seconds)
        rounds = sorted(by_round)
        axes.plot(rounds, [statistics.median(by_round[index]) for index in rounds], label="median")
        axes.fill_between(
            rounds,
            [min(by_round[index]) for index in rounds],
            [max(by_round[index]) for index in rounds],
            alpha=0.2,
            label=f"fastest to slowest of {len(by_device)} devices",
        )
        axes.legend()
    axes.set_ylabel("s")
    axes.set_ylim(bottom=0)


def _bytes(axes: Axes, made: Rows) -> None:
    rounds = [row["round"] + 1 for row in made]
    axes.bar([index - 0.2 for index in rounds], [row["bytes_up"] for row in made], 0.4, label="from devices")
    axes.bar([index + 0.2 for index in rounds], [row["bytes_down"] for row in made], 0.4, label="to devices")
    axes.set_ylabel("bytes")
    axes.legend()


def _arms(axes: Axes, arms: Rows) -> None:
    counts: dict[str, collections.Counter[int]] = collections.defaultdict(collections.Counter)
    for arm in arms:
        counts[arm["arm"] or "none fits"][arm["round"] + 1] += 1
    rounds = sorted({arm["round"] + 1 for arm in arms})
    below = [0] * len(rounds)
    for name, by_round in sorted(counts.items()):
        heights = [by_round[index] for index in rounds]
        axes.bar(rounds, heights, 0.8, bottom=below, label=name)
        below = [low + height for low, height in zip(below, heights, strict=True)]
    axes.set_ylabel("devices")
    axes.legend(fontsize=7, ncols=2)
