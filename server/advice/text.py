"""An advice as text for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_runtime.bundle.levels import kind_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from server.advice.board import BoardAdvice, Done, Figure
    from server.advice.schedules import Weighed


def advice_text(boards: Sequence[BoardAdvice], head: str) -> str:
    """Return all boards' advice, one paragraph each, below a head line."""
    return "\n\n".join([head, *(_board(advice) for advice in boards)])


def weighed_text(weighed: Weighed) -> str:
    """Return a line about a schedule that was weighed for the job."""
    return f"schedule: {weighed.what}, {'chosen' if weighed.is_chosen else 'not chosen'}: {weighed.because}"


def _board(advice: BoardAdvice) -> str:
    if advice.level is not None:
        kind = "STLD" if kind_of(advice.level) == "drop" else "the last layers"
        how = f"backprop at level {advice.level} ({kind}), {advice.steps} steps of {advice.batch_size} rows"
        how += f", {advice.rows_at_once} at once"
    else:
        how = f"forward-only (FedSPZO), split {advice.split}, P1 = {advice.front_perturbations}, "
        how += f"P2 = {advice.back_perturbations}, {advice.steps} steps of {advice.batch_size} rows"
    lines = [
        f"{advice.board}: {how}",
        f"  why          {advice.because}",
        f"  settings     {advice.settings_source}",
        _line("a round", advice.seconds, "s"),
        _line("up", advice.bytes_up, "bytes"),
        _line("down", advice.bytes_down, "bytes"),
        _line("memory", advice.memory_bytes, "bytes"),
        _line("board has", advice.board_memory, "bytes"),
        *(f"  so far       {_done(done)}" for done in advice.done),
        *([] if advice.frozen_front is None else [_line("front frozen", advice.frozen_front, "s")]),
        *(f"  not given    {lack}" for lack in advice.lacks),
    ]
    return "\n".join(lines)


def _done(done: Done) -> str:
    how = "forward passes alone" if done.level is None else f"level {done.level}"
    cost = "" if done.mean_seconds is None else f", {done.mean_seconds:.2f} s each on average"
    return f"{done.rounds} rounds of job {done.job}, {how}{cost}"


def _line(what: str, figure: Figure, unit: str) -> str:
    if figure.value is None:
        return f"  {what:<12} not known ({figure.source.removeprefix('not known: ')})"
    value = f"{figure.value:,}" if unit == "bytes" else f"{figure.value:.2f}"
    return f"  {what:<12} {value} {unit} ({figure.source})"
