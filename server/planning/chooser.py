"""Who gets which work: forward passes only, or backpropagation at a level."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edge_runtime.protocol.messages import Report
    from server.fleet.devices import Device


class Assignment(msgspec.Struct, frozen=True):
    """What was decided for a round; see planning.RoundPlan. ``split`` and ``length_s`` are None where nothing was."""

    devices: list[str]
    levels: dict[str, int]
    back_perturbations: dict[str, int] = {}
    split: int | None = None
    length_s: float | None = None


class Chooser(Protocol):
    """Decides who gets which work, and is told what came of it."""

    def can_work(self, device: Device) -> bool:
        """Whether there is any work for a device."""

    def assign(self, devices: Sequence[Device], index: int, attempt: int, enough: int, now: float) -> Assignment:
        """Decide the work of a round's devices; ``enough`` reports end it, ``now`` is the server's clock."""

    def resume(self, index: int, attempt: int) -> None:
        """Take up a round that was open when the server stopped."""

    def sent(self, device: str, now: float) -> None:
        """A device's plan was sent."""

    def reported(self, device: str, report: Report, now: float) -> None:
        """A report was taken."""

    def closed(self, index: int, examples: Mapping[str, int], now: float) -> None:
        """A round is aggregated; ``examples`` are the rows of each device whose report counts."""

    def evaluated(self, index: int | None, loss: float) -> None:
        """A round's adapter, or (None) the first one, has this held-out loss."""
