"""How a stock image takes its settings at the first boot, found by looking into it; and those settings."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from edge_runtime.errors import ConfigError

if TYPE_CHECKING:
    from server.flash.card import Card

Format = Literal["firstrun", "cloud-init", "rpi-preseed"]
"""``firstrun``: a script that systemd runs; ``cloud-init``: user-data, ds=nocloud; ``rpi-preseed``: one TOML file."""

PYTHONS = ("3.10", "3.11", "3.12", "3.13")
"""Versions of Python for which the device side has wheels."""

_PRESEED = ("/usr/bin/rpi-preseed", "/usr/sbin/rpi-preseed")
_CLOUD_INIT = ("/usr/bin/cloud-init",)
_FIRSTRUN = ("/usr/lib/raspberrypi-sys-mods/imager_custom", "/usr/lib/raspberrypi-sys-mods/firstboot")
_STOCK = "give a stock Raspberry Pi OS Lite (64-bit) image of Bookworm or later"


@dataclass(frozen=True)
class Found:
    """What an image is.

    Attributes:
        system: name and version of its operating system, as it calls itself.
        format: how it takes settings.
        reason: what in the image says so.
        python: the version of its Python, as ``3.11``.
        boot_folder: where it mounts its boot partition: ``/boot/firmware`` or ``/boot``.
        cmdline: the kernel's command line.
        boot_files: names at the top of its boot partition.
    """

    system: str
    format: Format
    reason: str
    python: str
    boot_folder: str
    cmdline: str
    boot_files: tuple[str, ...]


@dataclass(frozen=True)
class Wifi:
    """A wireless network.

    Attributes:
        ssid: its name.
        password: 8 to 63 characters, or the key of 64 hexadecimal digits; None: the network is open.
        country: two letters; the radio stays off without it.
        hidden: whether the network does not announce itself.
    """

    ssid: str
    password: str | None
    country: str
    hidden: bool = False


@dataclass(frozen=True)
class Settings:
    """What a board is told at its first boot.

    Attributes:
        hostname: its name on the network.
        user: who logs in over SSH.
        ssh_keys: public keys, one line each; none: SSH stays off, and nobody can log in.
        wifi: the wireless network; None: it uses its cable.
        time_zone: as ``Europe/Berlin``; None: the image's own.
        instance: differs with each card, so that a card that was flashed again is set up again.
    """

    hostname: str
    user: str
    ssh_keys: tuple[str, ...]
    wifi: Wifi | None
    time_zone: str | None
    instance: str


def look_into(card: Card) -> Found:
    """Find out what an image is.

    Raises:
        ConfigError: it is no image of a board with 64 bits, or takes its settings in no way that Covey knows.
        StorageError: it cannot be read.
    """
    release = _release(card)
    boot_files = tuple(card.boot_files())
    if "cmdline.txt" not in boot_files:
        raise ConfigError(
            f"the image's boot partition has no cmdline.txt, but {', '.join(boot_files[:8]) or 'nothing'}", _STOCK
        )
    cmdline = card.read_boot("cmdline.txt").decode(errors="replace").strip()
    _check_is_64_bit(card)
    found, reason = _format_of(card, cmdline, boot_files)
    system = release.get("PRETTY_NAME") or release.get("ID", "an unnamed system")
    return Found(system, found, reason, _python_of(card), _boot_folder(card), cmdline, boot_files)


def _release(card: Card) -> dict[str, str]:
    text = card.read_root("/etc/os-release") or card.read_root("/usr/lib/os-release")
    if text is None:
        raise ConfigError("the image's root partition has no /etc/os-release: it has no operating system", _STOCK)
    pairs = (line.partition("=") for line in text.decode(errors="replace").splitlines() if "=" in line)
    return {key: value.strip().strip('"') for key, _, value in pairs}


def _check_is_64_bit(card: Card) -> None:
    """Check the machine of the image's own programs: it is in the ELF header of the dynamic loader."""
    if not any(
        card.has(f"{folder}/ld-linux-aarch64.so.1") for folder in ("/usr/lib", "/lib", "/usr/lib/aarch64-linux-gnu")
    ):
        raise ConfigError("the image has no 64-bit Arm system in it (no ld-linux-aarch64.so.1)", _STOCK)


def _format_of(card: Card, cmdline: str, boot_files: tuple[str, ...]) -> tuple[Format, str]:
    for paths, found in ((_PRESEED, "rpi-preseed"), (_CLOUD_INIT, "cloud-init"), (_FIRSTRUN, "firstrun")):
        for path in paths:
            if card.has(path):
                return found, f"{path} is there"  # type: ignore[return-value]  # each is a Format
    seen = [*(f"/{name}" for name in boot_files[:12]), f"cmdline.txt: {cmdline}"]
    raise ConfigError(
        "the image takes settings at its first boot in no way that Covey knows: it has neither "
        f"{_PRESEED[0]} nor {_CLOUD_INIT[0]} nor {_FIRSTRUN[0]}; its boot partition has {', '.join(seen)}",
        f"{_STOCK}; or boot the board, and set it up with: covey provision ssh",
    )


def _python_of(card: Card) -> str:
    names = card.list_root("/usr/bin")
    found = [match[1] for name in names if (match := re.fullmatch(r"python(3\.\d+)", name))]
    usable = [version for version in PYTHONS if version in found]
    if not usable:
        raise ConfigError(
            f"the image has {'Python ' + ', '.join(found) if found else 'no Python'}, and Covey's device side runs on "
            f"{', '.join(PYTHONS)}",
            _STOCK,
        )
    target = card.read_root("/usr/bin/python3")
    return next((version for version in usable if target == card.read_root(f"/usr/bin/python{version}")), usable[-1])


def _boot_folder(card: Card) -> str:
    """Return where /etc/fstab mounts the FAT partition."""
    for line in (card.read_root("/etc/fstab") or b"").decode(errors="replace").splitlines():
        words = line.split()
        if len(words) > 2 and not words[0].startswith("#") and words[2] == "vfat":
            return words[1]
    return "/boot/firmware"
