"""Events of a job, for the progress table, for JSON lines and for tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable


class _Event(msgspec.Struct, frozen=True, tag_field="event", kw_only=True):
    """Base of all events: the field ``event`` has the tag."""


class Waiting(_Event, frozen=True, tag="waiting", kw_only=True):
    """Too few devices that may train are online.

    Attributes:
        ineligible: why the owners' rules keep others from training now, by name.
        resting: why others are offered nothing for a while: their refusals, or their silence.
    """

    online: int
    needed: int
    ineligible: dict[str, str] = {}
    resting: dict[str, str] = {}


class DeviceChanged(_Event, frozen=True, tag="device", kw_only=True):
    """A device sent its state; ``ineligible`` says why its owner's rules keep it from training now."""

    device: str
    state: str
    ineligible: str | None = None


class NameDoubled(_Event, frozen=True, tag="name_doubled", kw_only=True):
    """Two programs run under one device's name; ``starts`` names host, address and boot id of both."""

    device: str
    starts: list[str]


class RoundOpened(_Event, frozen=True, tag="round_opened", kw_only=True):
    """A round was offered to devices; ``arms`` names what each of them is given, as ``job explain`` does."""

    round: int
    attempt: int
    devices: list[str]
    arms: dict[str, str] = {}


class ReportTaken(_Event, frozen=True, tag="report", kw_only=True):
    """A device's report was taken; ``loss`` (training loss) is None in a private round."""

    round: int
    device: str
    loss: float | None
    seconds: float
    bytes_up: int


class OfferFailed(_Event, frozen=True, tag="offer_failed", kw_only=True):
    """A device will not report: it has refused, is lost, or its report was invalid."""

    round: int
    device: str
    reason: str


class RoundClosed(_Event, frozen=True, tag="round_closed", kw_only=True):
    """A round was aggregated into an adapter."""

    round: int
    reports: int
    adapter_sha256: str


class RoundAbandoned(_Event, frozen=True, tag="round_abandoned", kw_only=True):
    """An attempt had too few reports; the round is offered again."""

    round: int
    attempt: int
    reports: int


class Evaluated(_Event, frozen=True, tag="evaluated", kw_only=True):
    """Held-out loss and accuracy of an adapter; ``round`` is None for the adapter that the job starts from."""

    round: int | None
    loss: float
    accuracy: float


class Syncing(_Event, frozen=True, tag="syncing", kw_only=True):
    """The final adapter was sent to ``devices`` devices; ``proved`` of them have proved that they have it."""

    proved: int
    devices: int


class JobChanged(_Event, frozen=True, tag="job", kw_only=True):
    """A job is paused, stopped, finished or failed; ``reason`` says why it failed."""

    job: str
    state: str
    reason: str | None = None


Event = (
    Waiting
    | DeviceChanged
    | NameDoubled
    | RoundOpened
    | ReportTaken
    | OfferFailed
    | RoundClosed
    | RoundAbandoned
    | Evaluated
    | Syncing
    | JobChanged
)

if TYPE_CHECKING:
    Observer = Callable[[Event], None]
