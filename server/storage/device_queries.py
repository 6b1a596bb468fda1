"""What can be asked of the ledger about devices: one function per question, each with a typed answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from sqlalchemy import func, select

from edge_runtime.protocol.held_out import HeldOut
from edge_runtime.protocol.profile import Profile
from server.storage.asking import records, tuples
from server.storage.columns import json_text
from server.storage.records import ProfileRecord
from server.storage.registry_queries import DeviceFilter, devices_after, fleets_of, with_reports
from server.storage.tables import DEVICE_TAGS, DEVICES, PROFILES

if TYPE_CHECKING:
    from server.storage.ledger import Ledger
    from server.storage.records import DeviceRecord

_AT_ONCE = 500
"""Devices that are read by one question."""


def devices_of(ledger: Ledger, wanted: DeviceFilter | None = None) -> list[DeviceRecord]:
    """Return every device that ever announced itself, by fleet and name; ``wanted``: only these of them."""
    found: list[DeviceRecord] = []
    for fleet in fleets_of(ledger):
        after = ""
        while rows := devices_after(ledger, fleet, wanted or DeviceFilter(), after, _AT_ONCE):
            found += with_reports(ledger, fleet, rows)
            after = rows[-1].device
    return found


def quarantined_devices(ledger: Ledger, fleet: str) -> dict[str, str]:
    """Return why devices of a fleet are in quarantine, by name."""
    query = select(DEVICES.c.name, DEVICES.c.quarantine)
    query = query.where(DEVICES.c.fleet == fleet, DEVICES.c.quarantine.is_not(None))
    return dict(tuples(ledger, tuple[str, str], query))


def states_of(ledger: Ledger, fleet: str) -> dict[str, int]:
    """Return how many devices of a fleet are in each state."""
    query = select(DEVICES.c.state, func.count()).where(DEVICES.c.fleet == fleet)
    return dict(tuples(ledger, tuple[str, int], query.group_by(DEVICES.c.state).order_by(DEVICES.c.state)))


def count_ineligible(ledger: Ledger, fleet: str) -> int:
    """Return how many devices of a fleet their owner's rules or their rows keep from training."""
    query = select(func.count()).select_from(DEVICES).where(DEVICES.c.fleet == fleet, DEVICES.c.ineligible.is_not(None))
    ((count,),) = tuples(ledger, tuple[int], query)
    return int(count)


def held_out_of(ledger: Ledger, fleet: str) -> dict[str, HeldOut]:
    """Return how well the devices' own models did on held-out rows, by device; one that says nothing is left out."""
    said = json_text(DEVICES.c.birth, "held_out")
    query = select(DEVICES.c.name, said).where(DEVICES.c.fleet == fleet, said.is_not(None)).order_by(DEVICES.c.name)
    found = tuples(ledger, tuple[str, str], query)
    return {name: msgspec.json.decode(text, type=HeldOut) for name, text in found}


def tags_of(ledger: Ledger, fleet: str) -> dict[str, set[str]]:
    """Return the tags that the operator gave, by device; devices without one are left out."""
    found: dict[str, set[str]] = {}
    query = select(DEVICE_TAGS.c.device, DEVICE_TAGS.c.tag).where(DEVICE_TAGS.c.fleet == fleet)
    for device, tag in tuples(ledger, tuple[str, str], query):
        found.setdefault(device, set()).add(tag)
    return found


def newest_profile(ledger: Ledger, fleet: str, device: str, bundle_sha256: str | None = None) -> Profile | None:
    """Return a device's last valid profile, of the given bundle or (None) of any; None: there is none."""
    query = select(PROFILES.c.profile).where(
        PROFILES.c.fleet == fleet, PROFILES.c.device == device, PROFILES.c.profile.is_not(None)
    )
    if bundle_sha256 is not None:
        query = query.where(PROFILES.c.bundle_sha256 == bundle_sha256)
    rows = ledger.database.rows(query.order_by(PROFILES.c.id.desc()).limit(1))
    with ledger.database.reading():
        return msgspec.json.decode(rows[0]["profile"], type=Profile) if rows else None


def fleets_with_profiles_of(ledger: Ledger, device: str) -> list[str]:
    """Return the fleets in which a device of this name has published a profile, by name."""
    query = select(PROFILES.c.fleet).distinct().where(PROFILES.c.device == device).order_by(PROFILES.c.fleet)
    return [fleet for (fleet,) in tuples(ledger, tuple[str], query)]


def profiles_of(ledger: Ledger, device: str, fleet: str | None = None) -> list[ProfileRecord]:
    """Return the profiles kept of a device, of the given fleet or (None) of any, by fleet and oldest first."""
    names = ("fleet", "device", "received_at", "profile", "bundle_sha256", "remarks")
    query = select(*(PROFILES.c[name] for name in names)).where(PROFILES.c.device == device)
    if fleet is not None:
        query = query.where(PROFILES.c.fleet == fleet)
    query = query.order_by(PROFILES.c.fleet, PROFILES.c.id)
    return records(ledger, ProfileRecord, query, json={"profile": Profile, "remarks": list[str]})
