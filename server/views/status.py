"""A job's status in one line."""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from server.events import Waiting

_MOST_REASONS = 3


def waiting_text(waiting: Waiting) -> str:
    """Return why a job waits for devices: how many are ready, and the commonest reasons of those that are not."""
    text = f"waits for devices: {waiting.online} of {waiting.needed} are ready"
    others = [*waiting.ineligible.values(), *waiting.resting.values()]
    counts = collections.Counter(reason.splitlines()[0] for reason in others if reason)
    reasons = [f"{times} of {len(others)}: {reason}" for reason, times in counts.most_common(_MOST_REASONS)]
    return "; ".join([text, *reasons])
