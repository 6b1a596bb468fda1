"""Which devices are in which group of a rollout: computed once, from the devices that are known at its start."""

from __future__ import annotations

import hashlib
import math
import re
from typing import TYPE_CHECKING

from edge_runtime.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

_SIZE = re.compile(r"^(?P<number>[0-9]{1,7}(\.[0-9]{1,4})?)(?P<percent>%?)$")
_MOST_GROUPS = 50
_HINT = "give counts or percentages of the fleet that grow, as --groups 1,5%,25%,100%"


def check_groups(sizes: Sequence[str]) -> None:
    """Check the sizes of groups.

    Raises:
        ConfigError: there is none or are too many, or one is neither a positive count nor a percentage up to 100.
    """
    if not 1 <= len(sizes) <= _MOST_GROUPS:
        raise ConfigError(f"{len(sizes)} groups are not between 1 and {_MOST_GROUPS}", _HINT)
    for size in sizes:
        found = _SIZE.match(size)
        number = float(found["number"]) if found else 0.0
        is_percentage = found is not None and found["percent"] == "%"
        if number <= 0 or (is_percentage and number > 100) or (not is_percentage and number != int(number)):
            raise ConfigError(f"{size!r} is not the size of a group", _HINT)


def takes_everyone(sizes: Sequence[str]) -> bool:
    """Whether the last group is the whole fleet: then devices that come later belong to it."""
    return any(size.endswith("%") and float(size[:-1]) == 100 for size in sizes)


def groups_of(devices: Collection[str], sizes: Sequence[str], release: str) -> list[list[str]]:
    """Return the devices of each group, which no other group has; groups that would be empty are left out.

    The order of the devices follows from their names and the release, so that not always the same one goes first.

    Args:
        devices: names of the devices that are known.
        sizes: the size of the groups up to and with each one, as ``"1"`` or ``"25%"``, which is rounded up.
        release: hash of what is rolled out.

    Raises:
        ConfigError: see check_groups; or there is no device.
    """
    check_groups(sizes)
    if not devices:
        raise ConfigError("no device is known that could get it", "see: covey device list")
    order = sorted(devices, key=lambda name: hashlib.sha256(f"{release}/{name}".encode()).digest())
    groups, begun = [], 0
    for size in sizes:
        upto = math.ceil(float(size[:-1]) * len(order) / 100 - 1e-9) if size.endswith("%") else int(float(size))
        if upto > begun:
            groups.append(order[begun:upto])
            begun = min(upto, len(order))
        if begun == len(order):
            break
    return groups
