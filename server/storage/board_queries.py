"""What can be asked of the ledger about a fleet's boards: what each announced, published and has done, in pages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import and_, func, select

from edge_runtime.bundle.levels import Level
from edge_runtime.protocol.profile import Profile
from server.storage.asking import records, tuples
from server.storage.level_columns import LEVEL
from server.storage.tables import DEVICES, JOBS, OFFERS, PROFILES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from server.storage.ledger import Ledger


@dataclass(frozen=True)
class Work:
    """What a device has done in one job, in one way.

    Attributes:
        device: its name.
        job: name of the job.
        level: the level; None: forward passes alone.
        rounds: reports that were taken.
        mean_seconds: of a round's local steps, as reported; None: not known.
    """

    device: str
    job: str
    level: Level | None
    rounds: int
    mean_seconds: float | None


def births_after(ledger: Ledger, fleet: str, after: str, most: int) -> dict[str, dict[str, Any]]:
    """Return the births, as JSON values, of at most ``most`` devices whose names come after one, by name."""
    query = select(DEVICES.c.name, func.coalesce(DEVICES.c.birth, "{}"))
    query = query.where(DEVICES.c.fleet == fleet, DEVICES.c.name > after).order_by(DEVICES.c.name).limit(most)
    rows = tuples(ledger, tuple[str, str], query)
    with ledger.database.reading():
        return {name: msgspec.json.decode(birth, type=dict[str, Any]) for name, birth in rows}


def fitting_profiles(ledger: Ledger, fleet: str, devices: Sequence[str], bundle_sha256: str) -> dict[str, Profile]:
    """Return the newest valid profile of some devices, by device: one of the given bundle, else of any."""
    here = (PROFILES.c.fleet == fleet, PROFILES.c.device.in_(devices), PROFILES.c.profile.is_not(None))
    found: dict[str, Profile] = {}
    for terms in (here, (*here, PROFILES.c.bundle_sha256 == bundle_sha256)):
        newest = select(func.max(PROFILES.c.id)).where(*terms).group_by(PROFILES.c.device)
        rows = ledger.database.rows(select(PROFILES.c.device, PROFILES.c.profile).where(PROFILES.c.id.in_(newest)))
        with ledger.database.reading():
            found |= {
                msgspec.convert(row["device"], str): msgspec.json.decode(row["profile"], type=Profile) for row in rows
            }
    return found


def work_of(ledger: Ledger, fleet: str, devices: Sequence[str], bundle_sha256: str) -> list[Work]:
    """Return what some devices have done in a fleet's jobs with a bundle, by device, job and level."""
    query = (
        select(
            OFFERS.c.device,
            OFFERS.c.job,
            LEVEL,
            func.count().label("rounds"),
            func.avg(OFFERS.c.seconds).label("mean_seconds"),
        )
        .select_from(OFFERS.join(JOBS, and_(JOBS.c.name == OFFERS.c.job, JOBS.c.fleet == fleet)))
        .where(JOBS.c.bundle_sha256 == bundle_sha256, OFFERS.c.device.in_(devices), OFFERS.c.state == "reported")
        .group_by(OFFERS.c.device, OFFERS.c.job, OFFERS.c.level, OFFERS.c.level_kind)
        .order_by(OFFERS.c.device, OFFERS.c.job, OFFERS.c.level.nulls_first(), OFFERS.c.level_kind.nulls_first())
    )
    return records(ledger, Work, query, json={"level": Level})
