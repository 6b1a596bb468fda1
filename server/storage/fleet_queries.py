"""What can be asked of the ledger about the devices of one page, and about what one device did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
from sqlalchemy import and_, func, select

from edge_runtime.bundle.levels import Level
from edge_runtime.protocol.profile import BoardFacts, Reading
from server.bandit.arms import Arm
from server.bandit.choices import Choice
from server.storage.asking import records, tuples
from server.storage.level_columns import LEVEL
from server.storage.tables import CHOICES, DEVICE_TAGS, JOBS, OFFERS, PROFILES, ROUNDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from server.storage.ledger import Ledger


class _Readings(msgspec.Struct, frozen=True):
    after: Reading


class BoardSeen(msgspec.Struct, frozen=True):
    """What a profile says of a board; ``measured`` is None where the profile is modelled."""

    facts: BoardFacts
    measured: _Readings | None = None


class _ChosenArm(msgspec.Struct, frozen=True, array_like=True):
    """The beginning of a Choice: its estimates, which are most of it, are not read."""

    device: str
    arm: Arm | None


@dataclass(frozen=True)
class DeviceOffer:
    """What became of a round's offer to one device; see OfferRecord. ``opened_at``: UTC, as text."""

    job: str
    index: int
    attempt: int
    opened_at: str
    state: str
    detail: str | None
    level: Level | None
    seconds: float | None
    loss: float | None
    personal_layers: int | None
    peak_rss_bytes: int | None
    bytes_up: int
    bytes_down: int


def tags_given(ledger: Ledger, fleet: str, devices: Sequence[str]) -> dict[str, set[str]]:
    """Return the tags that the operator gave some devices, by device."""
    query = select(DEVICE_TAGS.c.device, DEVICE_TAGS.c.tag)
    query = query.where(DEVICE_TAGS.c.fleet == fleet, DEVICE_TAGS.c.device.in_(devices))
    found: dict[str, set[str]] = {}
    for device, tag in tuples(ledger, tuple[str, str], query):
        found.setdefault(device, set()).add(tag)
    return found


def boards_seen(ledger: Ledger, fleet: str, devices: Sequence[str]) -> dict[str, BoardSeen]:
    """Return what the newest valid profile says of the boards of some devices, by device."""
    here = (PROFILES.c.fleet == fleet, PROFILES.c.device.in_(devices), PROFILES.c.profile.is_not(None))
    newest = select(func.max(PROFILES.c.id)).where(*here).group_by(PROFILES.c.device)
    query = select(PROFILES.c.device, PROFILES.c.profile).where(PROFILES.c.id.in_(newest))
    rows = ledger.database.rows(query)
    with ledger.database.reading():
        return {
            msgspec.convert(row["device"], str): msgspec.json.decode(row["profile"], type=BoardSeen) for row in rows
        }


def last_choices(ledger: Ledger, fleet: str, devices: Sequence[str]) -> dict[str, Choice]:
    """Return the choices for some devices in the last round of the fleet's newest job that has a bandit, by device."""
    has_choices = select(CHOICES.c.job).where(CHOICES.c.job == JOBS.c.name).correlate(JOBS).exists()
    newest = select(JOBS.c.name).where(JOBS.c.fleet == fleet, has_choices)
    jobs = tuples(ledger, tuple[str], newest.order_by(JOBS.c.created_at.desc(), JOBS.c.sequence.desc()).limit(1))
    if not jobs:
        return {}
    job = jobs[0][0]
    last = select(func.max(CHOICES.c.round)).where(CHOICES.c.job == job).scalar_subquery()
    query = select(CHOICES.c.choice).where(CHOICES.c.job == job, CHOICES.c.round == last, CHOICES.c.device.in_(devices))
    rows = ledger.database.rows(query.order_by(CHOICES.c.attempt))
    with ledger.database.reading():
        choices = [msgspec.msgpack.decode(row["choice"], type=Choice) for row in rows]
    return {choice.device: choice for choice in choices}


def arms_by_round(ledger: Ledger, job: str) -> list[tuple[int, int, str | None]]:
    """Return round, attempt and arm of every choice of a job, in their order; the arm is None where none fitted."""
    query = select(CHOICES.c.round, CHOICES.c.attempt, CHOICES.c.choice).where(CHOICES.c.job == job)
    rows = tuples(ledger, tuple[int, int, bytes], query.order_by(CHOICES.c.round, CHOICES.c.attempt, CHOICES.c.device))
    decoder = msgspec.msgpack.Decoder(_ChosenArm)
    with ledger.database.reading():
        chosen = [(index, attempt, decoder.decode(choice).arm) for index, attempt, choice in rows]
    return [(index, attempt, None if arm is None else arm.name) for index, attempt, arm in chosen]


def offers_to_device(ledger: Ledger, fleet: str, device: str, last: int) -> list[DeviceOffer]:
    """Return the last offers of any of a fleet's jobs to one device, the newest first."""
    same = and_(OFFERS.c.job == ROUNDS.c.job, OFFERS.c.round == ROUNDS.c.round, OFFERS.c.attempt == ROUNDS.c.attempt)
    named = {"index": OFFERS.c.round.label("index"), "opened_at": ROUNDS.c.opened_at, "level": LEVEL}
    columns = [named[name] if name in named else OFFERS.c[name] for name in DeviceOffer.__dataclass_fields__]
    query = (
        select(*columns)
        .select_from(ROUNDS.join(JOBS, JOBS.c.name == ROUNDS.c.job).join(OFFERS, same))
        .where(JOBS.c.fleet == fleet, OFFERS.c.device == device)
        .order_by(ROUNDS.c.opened_at.desc(), ROUNDS.c.job, ROUNDS.c.round.desc(), ROUNDS.c.attempt.desc())
        .limit(last)
    )
    return records(ledger, DeviceOffer, query, json={"level": Level})


def arms_of_device(ledger: Ledger, fleet: str, device: str, last: int) -> dict[tuple[str, int, int], str | None]:
    """Return the last arms of one device by job, round and attempt; an arm is None where none fitted."""
    query = (
        select(CHOICES.c.job, CHOICES.c.round, CHOICES.c.attempt, CHOICES.c.choice)
        .select_from(CHOICES.join(JOBS, JOBS.c.name == CHOICES.c.job))
        .where(JOBS.c.fleet == fleet, CHOICES.c.device == device)
        .order_by(JOBS.c.created_at.desc(), JOBS.c.sequence.desc(), CHOICES.c.round.desc(), CHOICES.c.attempt.desc())
        .limit(last)
    )
    rows = tuples(ledger, tuple[str, int, int, bytes], query)
    decoder = msgspec.msgpack.Decoder(_ChosenArm)
    with ledger.database.reading():
        chosen = {(job, index, attempt): decoder.decode(choice).arm for job, index, attempt, choice in rows}
    return {key: None if arm is None else arm.name for key, arm in chosen.items()}
