"""Counts refused messages for each device and reason, and says so in the log, seldom enough for a flood."""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING

from edge_runtime.signing.verifier import Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from edge_runtime.signing.verifier import Refused

_LOG = logging.getLogger(__name__)
LOG_AGAIN_S = 60.0
"""Seconds between two log lines of one device and reason."""
MOST_SPEAKERS = 10_000
"""Names that are counted one by one: whoever publishes can invent as many as they like."""
OTHERS = "(others)"
NOBODY = "(no device)"
"""Counts messages whose topic names no device of the fleet."""
_QUIET = frozenset({Reason.DUPLICATE})
_USUAL = frozenset({Reason.STALE})
"""Honest members cause it too, with every restart of the other side."""


class Refusals:
    """What was refused, by device and reason. Used by one thread; counts may be read from others.

    Args:
        clock: returns monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._counts: Counter[tuple[str, Reason]] = Counter()
        self._speakers: set[str] = set()
        self._logged: dict[tuple[str, Reason], tuple[float, int]] = {}  # when, and the count then

    @property
    def counts(self) -> Mapping[tuple[str, Reason], int]:
        """How many messages were refused since the start, by the topic's speaker and the reason."""
        return dict(self._counts)

    def enter(self, topic: str, refused: Refused) -> None:
        """Count a refused message, and log it with device and reason unless that was done within LOG_AGAIN_S."""
        name = NOBODY if refused.route is None else refused.route.speaker
        if name not in self._speakers and len(self._speakers) >= MOST_SPEAKERS:
            name = OTHERS
        self._speakers.add(name)
        key = (name, refused.reason)
        self._counts[key] += 1
        if refused.reason in _QUIET:
            return
        now, count = self._clock(), self._counts[key]
        logged_at, logged_count = self._logged.get(key, (None, 0))
        if logged_at is not None and now - logged_at < LOG_AGAIN_S:
            return
        self._logged[key] = (now, count)
        unsaid = count - logged_count - 1
        _LOG.log(
            logging.INFO if refused.reason in _USUAL else logging.WARNING,
            "refused a message in the name of %s (%s): %s; topic %.200r%s",
            name,
            refused.reason.value,
            refused.detail,
            topic,
            f"; and {unsaid} more since the last line" if unsaid else "",
        )
