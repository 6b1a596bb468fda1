"""The assigner of a job without [bandit]: every device trains at the largest level that fits its free memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.planning.assigner import Assignment
from server.planning.levels import largest_level, takes_part

if TYPE_CHECKING:
    from collections.abc import Sequence

    from server.fleet.devices import Device
    from server.job.fitted import FittedJob


class MemoryAssigner:
    """Gives each device the largest level that fits its memory, and learns nothing.

    Args:
        fitted: the job and its bundle.
    """

    def __init__(self, fitted: FittedJob) -> None:
        self._fitted = fitted

    def can_work(self, device: Device) -> bool:
        """See Assigner."""
        return takes_part(self._fitted.job, largest_level(self._fitted, device))

    def assign(self, devices: Sequence[Device], index: int, attempt: int, enough: int, now: float) -> Assignment:  # noqa: ARG002 memory alone decides
        """See Assigner."""
        chosen = {device.name: largest_level(self._fitted, device) for device in devices}
        return Assignment(list(chosen), {name: level for name, level in chosen.items() if level is not None})
