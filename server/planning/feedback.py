"""What became of a round's plans, as the coordinator tells it to an assigner that learns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class RoundResumed:
    """The server has started again, and resumes the attempt that was open."""

    index: int
    attempt: int


@dataclass(frozen=True)
class PlanSent:
    """A device was sent its plan, at ``at_s`` on the server's clock; sent again, it comes again."""

    device: str
    at_s: float


@dataclass(frozen=True)
class ReportAccepted:
    """A device's report was taken; ``steps_s`` are the seconds of its local steps, as the device reports them.

    ``cold`` is the share of its rows for which a frozen front was run, 0 to 1; None: the front is not frozen.
    """

    device: str
    steps_s: float
    at_s: float
    cold: float | None = None


@dataclass(frozen=True)
class RoundClosing:
    """A round is about to be aggregated; ``examples`` are the rows of each device whose report is in its average."""

    index: int
    examples: Mapping[str, int]
    at_s: float


@dataclass(frozen=True)
class LossMeasured:
    """The adapter of a round, or (None) the one that the job starts from, has this held-out loss."""

    index: int | None
    loss: float


Feedback = RoundResumed | PlanSent | ReportAccepted | RoundClosing | LossMeasured
