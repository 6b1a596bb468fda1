"""Gives each device the largest dropout level that fits its free memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.planning.chooser import Assignment
from server.planning.levels import largest_level, takes_part

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edge_runtime.protocol.messages import Report
    from server.fleet.devices import Device
    from server.job.fitted import FittedJob


class LargestThatFits:
    """Gives each device the largest level that its memory can hold, and learns nothing: a job without [bandit].

    Args:
        fitted: the job and its bundle.
    """

    def __init__(self, fitted: FittedJob) -> None:
        self._fitted = fitted

    def can_work(self, device: Device) -> bool:
        """See Chooser."""
        return takes_part(self._fitted.job, largest_level(self._fitted, device))

    def assign(self, devices: Sequence[Device], index: int, attempt: int, enough: int, now: float) -> Assignment:  # noqa: ARG002
        """See Chooser."""
        chosen = {device.name: largest_level(self._fitted, device) for device in devices}
        return Assignment(list(chosen), {name: level for name, level in chosen.items() if level is not None})

    def resume(self, index: int, attempt: int) -> None:
        """See Chooser."""

    def sent(self, device: str, now: float) -> None:
        """See Chooser."""

    def reported(self, device: str, report: Report, now: float) -> None:
        """See Chooser."""

    def closed(self, index: int, examples: Mapping[str, int], now: float) -> None:
        """See Chooser."""

    def evaluated(self, index: int | None, loss: float) -> None:
        """See Chooser."""
