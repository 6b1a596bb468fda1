"""Assigns work to devices: forward passes only, or backpropagation at a level."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

from edge_runtime.bundle.levels import Level

if TYPE_CHECKING:
    from collections.abc import Sequence

    from server.fleet.devices import Device


class Assignment(msgspec.Struct, frozen=True):
    """What the devices of one round are given; storage.records.RoundPlan has the same fields.

    Attributes:
        devices: devices that take part, in the order of their names.
        levels: level of each backprop device, by name; the others are forward-only.
        back_perturbations: P2 of forward-only devices, by name; the others have the rule's.
        split: the round's split; None: not decided here.
        length_s: seconds from the offer to the last report that counts; None: not decided here.
    """

    devices: list[str]
    levels: dict[str, Level]
    back_perturbations: dict[str, int] = {}
    split: int | None = None
    length_s: float | None = None


class Assigner(Protocol):
    """Decides what each device of a round is given."""

    def can_work(self, device: Device) -> bool:
        """Whether there is anything that the device can be given."""

    def assign(self, devices: Sequence[Device], index: int, attempt: int, enough: int, now: float) -> Assignment:
        """Assign work to a round's devices.

        Args:
            devices: the cohort.
            index: index of the round.
            attempt: number of the attempt, from 0.
            enough: number of reports that end the round.
            now: seconds of the server's clock.
        """
