"""The ledger's writes about devices: their states, tags and profiles."""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING

import msgspec
from sqlalchemy import bindparam, delete, insert, select, update

from server.storage.columns import without_nul
from server.storage.tables import DEVICE_TAGS, DEVICES, HELD_TAGS, PROFILES
from server.storage.writes import Writes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Update

    from edge_runtime.protocol.profile import Profile

PROFILES_KEPT = 20
"""Profiles kept per device: this many valid and this many rejected ones."""

_OF_DEVICE = (DEVICES.c.fleet == bindparam("of_fleet"), DEVICES.c.name == bindparam("of_name"))
_PROVED = (
    update(DEVICES)
    .where(*_OF_DEVICE)
    .values(adapter_sha256=bindparam("new_sha256"), last_seen=bindparam("new_last_seen"))
)


class _Announced(msgspec.Struct, frozen=True):
    """What of a birth a list of devices is filtered by; ``covey_version``: None where it does not say."""

    tags: tuple[str, ...] = ()
    covey_version: str | None = None


class _Facts(msgspec.Struct, frozen=True):
    board: str


class _Profiled(msgspec.Struct, frozen=True):
    facts: _Facts


@functools.cache
def _changed(columns: tuple[str, ...]) -> Update:
    """Return the statement that gives some columns of a device's row new values."""
    return update(DEVICES).where(*_OF_DEVICE).values({column: bindparam(f"new_{column}") for column in columns})


def _without_nul(document: bytes) -> bytes:
    """Return JSON without NUL in its texts, which PostgreSQL cannot look into."""
    return (without_nul(document.decode()) or "").encode()


class DeviceWrites(Writes):
    """See the file's first line."""

    def _enter(self, fleet: str, name: str, values: dict[str, object], if_new: dict[str, object]) -> None:
        """Update a device's row, or make it, then with the values of ``if_new`` too. For use within a transaction."""
        values = {**values, "last_seen": self.database.now_text()}
        new = {f"new_{column}": value for column, value in values.items()}
        if not self.database.write(_changed(tuple(values)), {"of_fleet": fleet, "of_name": name, **new}):
            known = {**if_new, **values, "board": self._board(fleet, name)}
            self.database.write(insert(DEVICES), {"fleet": fleet, "name": name, **known})
            self._hold_tags(fleet, name, ())

    def _board(self, fleet: str, device: str) -> str | None:
        """Return the board in a device's newest valid profile, which may come before its birth; None: not known."""
        here = (PROFILES.c.fleet == fleet, PROFILES.c.device == device, PROFILES.c.profile.is_not(None))
        found = self.database.rows(select(PROFILES.c.profile).where(*here).order_by(PROFILES.c.id.desc()).limit(1))
        with self.database.reading():
            return msgspec.json.decode(found[0]["profile"], type=_Profiled).facts.board if found else None

    def _hold_tags(self, fleet: str, device: str, own: Sequence[str]) -> None:
        """Enter which tags a known device has: its own ones, and those that the operator gave it."""
        given = (DEVICE_TAGS.c.fleet == fleet, DEVICE_TAGS.c.device == device)
        tags = {str(row["tag"]) for row in self.database.rows(select(DEVICE_TAGS.c.tag).where(*given))} | set(own)
        self.database.write(delete(HELD_TAGS).where(HELD_TAGS.c.fleet == fleet, HELD_TAGS.c.device == device))
        rows = [{"fleet": fleet, "tag": tag, "device": device} for tag in sorted(tags)]
        self.database.write_many(insert(HELD_TAGS), rows)

    def _own_tags(self, fleet: str, device: str) -> tuple[str, ...] | None:
        """Return the tags in a known device's birth; None: there is no birth, or nobody can read it."""
        here = (DEVICES.c.fleet == fleet, DEVICES.c.name == device)
        found = self.database.rows(select(DEVICES.c.birth).where(*here))
        try:
            return msgspec.json.decode(found[0]["birth"], type=_Announced).tags if found else None
        except (msgspec.DecodeError, TypeError, UnicodeError):  # whoever lists the device names the damage
            return None

    def device_state(self, fleet: str, name: str, state: str, ineligible: str | None = None) -> None:
        """Enter a device's state, and why its owner's rules keep it from training now; None: they do not."""
        with self.database.transaction():
            self._enter(fleet, name, {"state": state, "ineligible": ineligible}, {})

    def devices_silent(self, fleet: str) -> None:
        """Enter that no device of a fleet has answered the server's new hello yet."""
        here = (DEVICES.c.fleet == fleet, DEVICES.c.state.in_(["online", "busy"]))
        self.database.write(update(DEVICES).where(*here).values(state="silent"))

    def device_born(self, fleet: str, name: str, birth: str) -> None:
        """Enter a device's birth message (JSON)."""
        said = msgspec.json.decode(birth, type=_Announced)
        with self.database.transaction():
            before = self._own_tags(fleet, name)
            self._enter(fleet, name, {"birth": birth, "covey_version": said.covey_version}, {"state": "online"})
            if said.tags != before:
                self._hold_tags(fleet, name, said.tags)

    def device_proved(self, fleet: str, name: str, adapter_sha256: str) -> None:
        """Enter the hash of the adapter that a device has proved to have."""
        key = {"of_fleet": fleet, "of_name": name}
        self.database.write(_PROVED, {**key, "new_sha256": adapter_sha256, "new_last_seen": self.database.now_text()})

    def device_reason(self, fleet: str, name: str, reason: str | None) -> None:
        """Enter why a device is offered nothing for a while; None: nothing keeps it from work."""
        self.database.write(
            update(DEVICES).where(*_OF_DEVICE).values(reason=reason), {"of_fleet": fleet, "of_name": name}
        )

    def device_quarantined(self, fleet: str, name: str, reason: str | None) -> bool:
        """Enter why a device is in quarantine; None: it is not any more. Return whether the device is known."""
        key = {"of_fleet": fleet, "of_name": name}
        return self.database.write(update(DEVICES).where(*_OF_DEVICE).values(quarantine=reason), key) > 0

    def forget_device(self, fleet: str, name: str) -> bool:
        """Delete a device with its tags and profiles; return whether it was there. What it did in jobs stays."""
        with self.database.transaction():
            there = self.database.write(delete(DEVICES).where(DEVICES.c.fleet == fleet, DEVICES.c.name == name))
            for tags in (DEVICE_TAGS, HELD_TAGS):
                self.database.write(delete(tags).where(tags.c.fleet == fleet, tags.c.device == name))
            self.database.write(delete(PROFILES).where(PROFILES.c.fleet == fleet, PROFILES.c.device == name))
        return there > 0

    def tag_device(self, fleet: str, device: str, tag: str) -> None:
        """Enter that a device has a tag; it may have it already."""
        with self.database.transaction():
            self._untag(fleet, device, tag)
            self.database.write(insert(DEVICE_TAGS), {"fleet": fleet, "device": device, "tag": tag})
            self._tagged(fleet, device)

    def untag_device(self, fleet: str, device: str, tag: str) -> None:
        """Enter that the operator has given a device a tag no more."""
        with self.database.transaction():
            self._untag(fleet, device, tag)
            self._tagged(fleet, device)

    def _untag(self, fleet: str, device: str, tag: str) -> None:
        key = (DEVICE_TAGS.c.fleet == fleet, DEVICE_TAGS.c.device == device, DEVICE_TAGS.c.tag == tag)
        self.database.write(delete(DEVICE_TAGS).where(*key))

    def _tagged(self, fleet: str, device: str) -> None:
        """Enter a device's tags anew, if it is known."""
        here = (DEVICES.c.fleet == fleet, DEVICES.c.name == device)
        if self.database.rows(select(DEVICES.c.name).where(*here)):
            self._hold_tags(fleet, device, self._own_tags(fleet, device) or ())

    def profile_received(
        self, fleet: str, device: str, payload_sha256: str, profile: Profile | None, remarks: Sequence[str]
    ) -> bool:
        """Enter a device's profile, or that one was rejected (None), and delete its oldest ones (PROFILES_KEPT).

        Returns:
            Whether it is new: the broker sends a retained message again whenever the server starts.
        """
        of_device = (PROFILES.c.fleet == fleet, PROFILES.c.device == device)
        kind = PROFILES.c.profile.is_(None) if profile is None else PROFILES.c.profile.is_not(None)
        newest = PROFILES.c.id.desc()
        with self.database.transaction():
            last = self.database.rows(select(PROFILES.c.payload_sha256).where(*of_device).order_by(newest).limit(1))
            if last and last[0]["payload_sha256"] == payload_sha256:
                return False
            self.database.write(
                insert(PROFILES),
                {
                    "fleet": fleet,
                    "device": device,
                    "payload_sha256": payload_sha256,
                    "profile": None if profile is None else _without_nul(msgspec.json.encode(profile)),
                    "bundle_sha256": None if profile is None else profile.bundle.sha256,
                    "remarks": json.dumps(list(remarks)),
                    "received_at": self.database.now_text(),
                },
            )
            if profile is not None:
                here = {"of_fleet": fleet, "of_name": device, "new_board": without_nul(profile.facts.board)}
                self.database.write(_changed(("board",)), here)
            kept = select(PROFILES.c.id).where(*of_device, kind).order_by(newest).limit(PROFILES_KEPT)
            self.database.write(delete(PROFILES).where(*of_device, kind, PROFILES.c.id.not_in(kept)))
        return True
