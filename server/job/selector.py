"""Which devices a job is for: ``devices = "tag:kitchen, pi-3"`` in job.toml."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_runtime.errors import ConfigError
from edge_runtime.values import NAME_PATTERN

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

EVERYONE = "all"
SWARM = "swarm"
"""The tag of sessions of ``covey swarm``, which train nothing: a job has them only where it names this tag, alone."""
_TAG = "tag:"


@dataclass(frozen=True)
class Selector:
    """Devices by name and by tag.

    Attributes:
        everyone: whether every device of the fleet fits.
        names: devices that fit by their name.
        tags: devices with one of these tags fit.
    """

    everyone: bool
    names: frozenset[str] = frozenset()
    tags: frozenset[str] = frozenset()

    @property
    def is_for_swarm(self) -> bool:
        """Whether it names the sessions of a swarm, which drawn scalars come from, and nobody else."""
        return SWARM in self.tags

    def fits(self, name: str, tags: Collection[str]) -> bool:
        """Whether a device with this name and these tags fits; one of a swarm fits only a job for the swarm."""
        if SWARM in tags:
            return self.is_for_swarm
        return self.everyone or name in self.names or not self.tags.isdisjoint(tags)

    def overlaps(self, other: Selector, devices: Mapping[str, Collection[str]]) -> bool:
        """Whether a device fits both, or would if it were there.

        Args:
            other: the other selector.
            devices: tags of the devices that are known, by name.
        """
        if self.is_for_swarm or other.is_for_swarm:
            return self.is_for_swarm and other.is_for_swarm
        if self.everyone or other.everyone:
            return True
        if self.names & other.names or self.tags & other.tags:
            return True
        return any(self.fits(name, tags) and other.fits(name, tags) for name, tags in devices.items())


def parse_selector(text: str) -> Selector:
    """Read ``all``, or names and tags (``tag:NAME``) with commas between them.

    Raises:
        ConfigError: it is empty, or has something that is no name.
    """
    items = [item.strip() for item in text.split(",") if item.strip()]
    if not items:
        raise ConfigError('devices = "" is nobody', 'give "all", or names and tags: devices = "tag:kitchen, pi-3"')
    if _TAG + SWARM in items and len(set(items)) > 1:
        raise ConfigError(
            f"devices names {_TAG}{SWARM} and others: sessions of covey swarm send drawn numbers, which spoil a model",
            f'a load test is a job of its own, with devices = "{_TAG}{SWARM}"',
        )
    if EVERYONE in items:
        return Selector(everyone=True)
    for item in items:
        if re.search(NAME_PATTERN, item.removeprefix(_TAG)) is None:
            raise ConfigError(
                f"devices has {item!r}, which is neither a device's name nor tag:NAME",
                "names have letters, digits, dots, dashes and underscores, with commas between them",
            )
    tags = frozenset(item.removeprefix(_TAG) for item in items if item.startswith(_TAG))
    return Selector(everyone=False, names=frozenset(items) - {_TAG + tag for tag in tags}, tags=tags)


def check_there(selector: Selector, devices: Mapping[str, Collection[str]], fleet: str) -> None:
    """Check that each tag and each name of a selector is known.

    Args:
        selector: the devices of a job.
        devices: tags of the devices that are known, by name.
        fleet: name of the fleet.

    Raises:
        ConfigError: nobody has a tag, or no device has a name.
    """
    tags = sorted({tag for of_device in devices.values() for tag in of_device})
    for tag in sorted(selector.tags.difference(tags)):
        raise ConfigError(
            f"no device of fleet {fleet} has the tag {tag}",
            f"its tags are {', '.join(tags) or 'none'}: covey device tag NAME {tag}; or submit it with --allow-absent",
        )
    for name in sorted(selector.names.difference(devices)):
        raise ConfigError(
            f"fleet {fleet} has never seen a device {name}",
            "see: covey device list; or submit it with --allow-absent, and it waits for the device",
        )
