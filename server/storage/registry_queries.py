"""The registry: a fleet's devices by name, one page after the other, filtered by indexes; and how many there are.

No page is found by its number: each begins behind the last name of the one before, so that the last costs what the
first does. What is counted is counted in an index.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from sqlalchemy import and_, func, select

from server.storage.asking import records, tuples
from server.storage.records import DeviceRecord
from server.storage.tables import DEVICES, HELD_TAGS, JOBS, OFFERS, standings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Column, ColumnElement, Select

    from server.storage.ledger import Ledger

Standing = Literal["", "free", "ineligible", "resting", "quarantine"]
"""What keeps a device from work; see tables.standings. Empty: any."""


@dataclass(frozen=True)
class DeviceFilter:
    """Which devices are asked for; an empty text asks for all.

    Attributes:
        text: part of the name, in any case.
        state: the state.
        tag: a tag of edge.toml, or one that the operator gave.
        board: the board in the newest profile.
        version: the version of Covey.
        standing: what keeps it from work.
    """

    text: str = ""
    state: str = ""
    tag: str = ""
    board: str = ""
    version: str = ""
    standing: Standing = ""

    @property
    def is_empty(self) -> bool:
        """Whether it asks for all devices."""
        return not any(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class FleetRow:
    """A device as it was last heard; ``birth`` is its birth message as JSON values. Unknown is None."""

    device: str
    state: str
    ineligible: str | None
    reason: str | None
    quarantine: str | None
    birth: dict[str, Any]
    adapter_sha256: str | None
    last_seen: str


@dataclass(frozen=True)
class _Reported:
    device: str
    reports: int
    mean_seconds: float | None


_ROW = [
    DEVICES.c.name.label("device"),
    *(DEVICES.c[name] for name in ("state", "ineligible", "reason", "quarantine", "adapter_sha256", "last_seen")),
    func.coalesce(DEVICES.c.birth, "{}").label("birth"),
]


class _Birth(msgspec.Struct):
    """The fields of a birth message that are looked into."""

    capability: dict[str, Any] = {}
    tags: list[str] = []


def _name_in(wanted: DeviceFilter) -> Column[str]:
    """Return the column whose index has the names in order: where a tag alone is asked for, that of the tags."""
    return HELD_TAGS.c.device if wanted.tag and wanted == DeviceFilter(tag=wanted.tag) else DEVICES.c.name


def _from(wanted: DeviceFilter, fleet: str, *columns: Any) -> Select[Any]:  # noqa: ANN401 columns
    """Return the query of the devices that are asked for."""
    terms: list[ColumnElement[bool]] = [DEVICES.c.fleet == fleet]
    query = select(*columns).select_from(DEVICES)
    has_tag = (HELD_TAGS.c.fleet == fleet, HELD_TAGS.c.tag == wanted.tag)
    if wanted.tag and _name_in(wanted) is HELD_TAGS.c.device:
        same = and_(HELD_TAGS.c.fleet == DEVICES.c.fleet, HELD_TAGS.c.device == DEVICES.c.name)
        query = select(*columns).select_from(HELD_TAGS.join(DEVICES, same))
        terms += has_tag
    elif wanted.tag:
        # Looked up once a device: a join of two filtered tables without statistics has taken PostgreSQL minutes.
        held = select(HELD_TAGS.c.device).where(*has_tag, HELD_TAGS.c.device == DEVICES.c.name).correlate(DEVICES)
        terms.append(held.scalar_subquery().is_not(None))
    if wanted.text:
        terms.append(DEVICES.c.name.icontains(wanted.text, autoescape=True))
    for column, value in (("state", wanted.state), ("covey_version", wanted.version), ("board", wanted.board)):
        if value:
            terms.append(DEVICES.c[column] == value)
    if wanted.standing:
        terms.append(standings()[wanted.standing])
    return query.where(*terms)


def count_devices(ledger: Ledger, fleet: str, wanted: DeviceFilter, most: int | None = None) -> int:
    """Return how many devices of a fleet are asked for; ``most``: nobody needs to know of more."""
    found = _from(wanted, fleet, _name_in(wanted)).limit(most).subquery()
    ((count,),) = tuples(ledger, tuple[int], select(func.count()).select_from(found))
    return int(count)


def devices_after(ledger: Ledger, fleet: str, wanted: DeviceFilter, after: str, limit: int) -> list[FleetRow]:
    """Return at most ``limit`` of the devices that are asked for, by name, behind a name; "": from the first."""
    name = _name_in(wanted)
    query = _from(wanted, fleet, *_ROW).where(name > after).order_by(name).limit(limit)
    return records(ledger, FleetRow, query, json={"birth": dict[str, Any]})


def devices_before(ledger: Ledger, fleet: str, wanted: DeviceFilter, before: str, limit: int) -> list[FleetRow]:
    """Return the last ``limit`` of the devices that are asked for and stand before a name, by name."""
    name = _name_in(wanted)
    query = _from(wanted, fleet, *_ROW).where(name < before).order_by(name.desc()).limit(limit)
    return records(ledger, FleetRow, query, json={"birth": dict[str, Any]})[::-1]


def find_device(ledger: Ledger, fleet: str, device: str) -> FleetRow | None:
    """Return one device; None: it has never announced itself."""
    query = select(*_ROW).where(DEVICES.c.fleet == fleet, DEVICES.c.name == device)
    found = records(ledger, FleetRow, query, json={"birth": dict[str, Any]})
    return found[0] if found else None


def with_reports(ledger: Ledger, fleet: str, rows: Sequence[FleetRow]) -> list[DeviceRecord]:
    """Return devices of a fleet with how many reports of each were taken, and with the mean of their seconds."""
    query = (
        select(OFFERS.c.device, func.count().label("reports"), func.avg(OFFERS.c.seconds).label("mean_seconds"))
        .join(JOBS, JOBS.c.name == OFFERS.c.job)
        .where(OFFERS.c.device.in_([row.device for row in rows]), OFFERS.c.state == "reported", JOBS.c.fleet == fleet)
        .group_by(OFFERS.c.device)
    )
    reported = {found.device: found for found in records(ledger, _Reported, query)} if rows else {}
    with ledger.database.reading():
        for row in rows:
            msgspec.convert(row.birth, _Birth)
    return [
        DeviceRecord(
            fleet=fleet,
            device=row.device,
            state=row.state,
            ineligible=row.ineligible,
            reason=row.reason,
            quarantine=row.quarantine,
            birth=row.birth,
            adapter_sha256=row.adapter_sha256,
            last_seen=row.last_seen,
            reports=reported[row.device].reports if row.device in reported else 0,
            mean_seconds=reported[row.device].mean_seconds if row.device in reported else None,
        )
        for row in rows
    ]


def fleets_of(ledger: Ledger) -> list[str]:
    """Return the fleets that have devices, by name."""
    return _each(ledger, DEVICES.c.fleet)


def versions_of(ledger: Ledger, fleet: str) -> list[str]:
    """Return the versions of Covey that a fleet's devices have announced, each once."""
    return _each(ledger, DEVICES.c.covey_version, DEVICES.c.fleet == fleet)


def _each(ledger: Ledger, column: Column[str], *terms: ColumnElement[bool]) -> list[str]:
    """Return each value of a column once, in order: an index is looked into once a value, not once a device."""
    found: list[str] = []
    while True:
        behind = [column > found[-1]] if found else []
        query = select(column).where(column.is_not(None), *terms, *behind).order_by(column).limit(1)
        rows = tuples(ledger, tuple[str], query)
        if not rows:
            return found
        found.append(rows[0][0])


def device_names(ledger: Ledger, fleet: str, without_tag: str) -> list[str]:
    """Return the names of a fleet's devices that do not have a tag, in order."""
    tagged = select(HELD_TAGS.c.device).where(HELD_TAGS.c.fleet == fleet, HELD_TAGS.c.tag == without_tag)
    here = (DEVICES.c.fleet == fleet, DEVICES.c.name.not_in(tagged))
    query = select(DEVICES.c.name).where(*here).order_by(DEVICES.c.name)
    return [name for (name,) in tuples(ledger, tuple[str], query)]
