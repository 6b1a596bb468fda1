"""What happens during a job, for whoever watches: the progress table, the JSON lines, tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable


class _Event(msgspec.Struct, frozen=True, tag_field="event", kw_only=True):
    """What all events share: their tag."""


class Waiting(_Event, frozen=True, tag="waiting", kw_only=True):
    """Too few devices that take work are online to go on; ``ineligible`` says why others take none."""

    online: int
    needed: int
    ineligible: dict[str, str] = {}


class DeviceChanged(_Event, frozen=True, tag="device", kw_only=True):
    """A device said what it is doing, or (``ineligible``) why it takes no work now."""

    device: str
    state: str
    ineligible: str | None = None


class RoundOpened(_Event, frozen=True, tag="round_opened", kw_only=True):
    """A round was offered."""

    round: int
    attempt: int
    devices: list[str]


class ReportTaken(_Event, frozen=True, tag="report", kw_only=True):
    """A device reported; ``loss`` is None in a private round."""

    round: int
    device: str
    loss: float | None
    seconds: float
    bytes_up: int


class OfferFailed(_Event, frozen=True, tag="offer_failed", kw_only=True):
    """A device will not report: it refused, or is lost."""

    round: int
    device: str
    reason: str


class RoundClosed(_Event, frozen=True, tag="round_closed", kw_only=True):
    """A round has its adapter."""

    round: int
    reports: int
    adapter_sha256: str


class RoundAbandoned(_Event, frozen=True, tag="round_abandoned", kw_only=True):
    """An attempt had too few reports; the round is tried again."""

    round: int
    attempt: int
    reports: int


class Evaluated(_Event, frozen=True, tag="evaluated", kw_only=True):
    """Held-out loss and accuracy of an adapter; ``round`` is None for the one the job starts from."""

    round: int | None
    loss: float
    accuracy: float


class Syncing(_Event, frozen=True, tag="syncing", kw_only=True):
    """The final adapter is on its way: how many devices have shown its hash."""

    proved: int
    devices: int


Event = (
    Waiting
    | DeviceChanged
    | RoundOpened
    | ReportTaken
    | OfferFailed
    | RoundClosed
    | RoundAbandoned
    | Evaluated
    | Syncing
)

if TYPE_CHECKING:
    Observer = Callable[[Event], None]
