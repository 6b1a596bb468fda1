"""Finds two machines with one name: a start of a device that speaks again after another start has spoken.

A restart never brings an old boot id back, so the order A, B, A means that two processes run under one name.
"""

from __future__ import annotations

import collections
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge_runtime.protocol.presence import Birth

_KEPT_STARTS = 8
"""Starts that are remembered for a name; older ones are forgotten."""
MOST_NAMES = 100_000
"""Names that are remembered, as many as a server's registry is made for: where all devices of a larger fleet announce
themselves in turn, each would be forgotten before it speaks again, and no doubled name be found."""
LASTS_S = 300.0
"""A name counts as doubled until the other start has not spoken for so long."""


@dataclass(frozen=True, slots=True)
class Start:
    """One start of a device's process, as its announcement tells it; None: not known."""

    boot_id: str
    hostname: str | None
    address: str | None

    def __str__(self) -> str:
        where = self.hostname or "a machine without a name"
        return f"{where} ({self.address or 'address not known'}, boot id {self.boot_id})"


@dataclass(frozen=True)
class DoubledName:
    """Two processes that run under one name.

    Attributes:
        device: the name.
        first: the start that spoke again.
        second: the start that spoke in between.
    """

    device: str
    first: Start
    second: Start

    @property
    def what(self) -> str:
        """What is wrong: names both."""
        return f"two programs run as {self.device}: {self.first} and {self.second}"

    hint = "give one of them another name in its edge.toml, or stop it; the broker lets only one of them in at a time"


class NameWatch:
    """Watches the announcements of a fleet's devices.

    Takes only announcements that answer the server's current hello: a broker may hand out older ones again.

    Args:
        most_names: names that are remembered.
    """

    def __init__(self, most_names: int = MOST_NAMES) -> None:
        self._most_names = most_names
        self._starts: collections.OrderedDict[str, list[Start]] = collections.OrderedDict()
        self._doubled: dict[str, tuple[DoubledName, float]] = {}

    def take(self, birth: Birth, now: float) -> DoubledName | None:
        """Take in an announcement; return the two programs where it shows that two run under its name.

        The same pair is returned once, until it has kept quiet for LASTS_S.

        Args:
            birth: an announcement under the server's current epoch.
            now: seconds of the server's clock.
        """
        start = Start(birth.boot_id, birth.hostname, birth.address)
        starts = self._starts.setdefault(birth.device, [])
        self._starts.move_to_end(birth.device)
        while len(self._starts) > self._most_names:
            self._starts.popitem(last=False)  # who spoke last longest ago; a name that was found doubled stays so
        if starts and starts[-1].boot_id == start.boot_id:
            starts[-1] = start
            return None
        is_back = any(known.boot_id == start.boot_id for known in starts)
        other = starts[-1] if starts else None
        others = [known for known in starts if known.boot_id != start.boot_id]
        starts[:] = [*others[1 - _KEPT_STARTS :], start]
        return self._enter(DoubledName(birth.device, start, other), now) if is_back and other is not None else None

    def _enter(self, found: DoubledName, now: float) -> DoubledName | None:
        known = self.doubled(now).get(found.device)
        pair = {found.first.boot_id, found.second.boot_id}
        is_known = known is not None and {known.first.boot_id, known.second.boot_id} == pair
        lately = {name: known for name, known in self._doubled.items() if now - known[1] < LASTS_S}
        self._doubled = {**lately, found.device: (found, now)}
        return None if is_known else found

    def doubled(self, now: float) -> dict[str, DoubledName]:
        """Return the names that two programs use now; ``now``: seconds of the server's clock."""
        return {name: found for name, (found, at) in sorted(self._doubled.items()) if now - at < LASTS_S}

    def forget(self, device: str) -> None:
        """Forget a device."""
        self._starts.pop(device, None)
        self._doubled.pop(device, None)
