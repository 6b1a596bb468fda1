"""A job's status in one line, and the time that it still takes."""

from __future__ import annotations

import collections
import statistics
from datetime import datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from server.events import Waiting

_MOST_REASONS = 3
_LAST_ROUNDS = 6
"""The time left is judged by this many of the last rounds."""


def waiting_text(waiting: Waiting) -> str:
    """Return why a job waits for devices: how many are ready, and the commonest reasons of those that are not."""
    text = f"waits for devices: {waiting.online} of {waiting.needed} are ready"
    others = [*waiting.ineligible.values(), *waiting.resting.values()]
    counts = collections.Counter(reason.splitlines()[0] for reason in others if reason)
    reasons = [f"{times} of {len(others)}: {reason}" for reason, times in counts.most_common(_MOST_REASONS)]
    return "; ".join([text, *reasons])


def seconds_left(rounds: Sequence[dict[str, Any]], wanted: int) -> float | None:
    """Return about how many seconds a job still takes: the rounds that are left, by the median of the last ones.

    A round's time is that from the end of the one before it to its own, so that evaluation and waiting count.

    Args:
        rounds: as summary.job_rounds returns them.
        wanted: number of rounds of the job.

    Returns:
        None where no round has ended yet, or none is left.
    """
    done = [made for made in rounds if made["state"] == "aggregated" and made["closed_at"] is not None]
    if not done or len(done) >= wanted:
        return None
    last = done[-_LAST_ROUNDS:]
    ends = [datetime.fromisoformat(made["closed_at"]) for made in last]
    took = [(later - earlier).total_seconds() for earlier, later in pairwise(ends)]
    took = took or [(ends[0] - datetime.fromisoformat(last[0]["opened_at"])).total_seconds()]
    return (wanted - len(done)) * statistics.median(took)


def duration_text(seconds: float) -> str:
    """Return a duration for people: ``50 s``, ``12 min``, ``3.5 h``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
