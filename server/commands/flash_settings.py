"""What ``covey flash`` tells a board, from flags and from this machine."""

from __future__ import annotations

import getpass
import re
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.errors import ConfigError

if TYPE_CHECKING:
    import argparse

    from server.flash.first_boot import Settings, Wifi

_KEYS = ("id_ed25519.pub", "id_ecdsa.pub", "id_rsa.pub")
_KEY_LINE = re.compile(r"(ssh-|ecdsa-|sk-)\S+ [A-Za-z0-9+/=]{40,}( .*)?")
_HOSTNAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_USER = re.compile(r"[a-z][a-z0-9_-]{0,31}")
_ZONE = re.compile(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+){0,2}")
_PSK = re.compile(r"[0-9a-fA-F]{64}")
_LEAST_PASSWORD, _LONGEST_PASSWORD, _LONGEST_SSID = 8, 63, 32


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add the flags for what a board is told at its first boot."""
    group = parser.add_argument_group("first boot")
    group.add_argument("--hostname", metavar="NAME", help="name on the network (default: the device's)")
    group.add_argument("--user", default="pi", metavar="NAME", help="who logs in over SSH (default: %(default)s)")
    group.add_argument(
        "--ssh-key", type=Path, metavar="FILE", help="public key for SSH (default: the first of ~/.ssh/id_*.pub)"
    )
    group.add_argument("--no-ssh", action="store_true", help="leave SSH off")
    group.add_argument("--wifi", metavar="SSID", help="the wireless network (default: a cable)")
    group.add_argument(
        "--wifi-password-file", type=Path, metavar="FILE", help="its password (default: asked for at a terminal)"
    )
    group.add_argument("--wifi-open", action="store_true", help="the network has no password")
    group.add_argument("--wifi-hidden", action="store_true", help="the network does not announce itself")
    group.add_argument("--wifi-country", metavar="CC", help="two letters, as DE; needed with --wifi")
    group.add_argument("--time-zone", metavar="ZONE", help="as Europe/Berlin (default: this machine's)")
    group.add_argument("--user-data", type=Path, metavar="FILE", help="your own cloud-init settings, merged in")


class SettingsSource:
    """Reads the flags once, and gives each device its settings.

    Raises:
        ConfigError: a flag cannot be used.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self._hostname: str | None = args.hostname
        if _USER.fullmatch(args.user) is None:
            raise ConfigError(f"--user {args.user!r} is no user name", "use small letters, digits, - and _")
        self._user: str = args.user
        self._keys = _ssh_keys(args)
        self._wifi = _wifi(args)
        self._time_zone = _time_zone(args.time_zone)

    def settings(self, device: str) -> Settings:
        """Return the settings of a device's card; each call has another instance id."""
        from server.flash.first_boot import Settings

        hostname = self._hostname or re.sub(r"[^a-z0-9-]+", "-", device.lower()).strip("-")[:63].strip("-")
        if _HOSTNAME.fullmatch(hostname) is None:
            raise ConfigError(f"{hostname!r} is no host name", "give one with --hostname: letters, digits and -")
        instance = f"covey-{secrets.token_hex(8)}"
        return Settings(hostname, self._user, self._keys, self._wifi, self._time_zone, instance)


def _ssh_keys(args: argparse.Namespace) -> tuple[str, ...]:
    if args.no_ssh:
        return ()
    path: Path | None = args.ssh_key
    if path is None:
        path = next((file for name in _KEYS if (file := Path.home() / ".ssh" / name).is_file()), None)
        if path is None:
            raise ConfigError(
                "there is no public key in ~/.ssh, and without one nobody could log in",
                "make one: ssh-keygen -t ed25519; or give --ssh-key FILE, or --no-ssh",
            )
    text = _read(path, "--ssh-key")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if "PRIVATE KEY" in text:
        raise ConfigError(f"{path} is a private key, which must stay where it is", f"give the public one: {path}.pub")
    for line in lines:
        if _KEY_LINE.fullmatch(line) is None:
            raise ConfigError(f"{path} has a line that is no public key", "give a file such as ~/.ssh/id_ed25519.pub")
    if not lines:
        raise ConfigError(f"{path} is empty", "give a file such as ~/.ssh/id_ed25519.pub")
    return tuple(lines)


def _wifi(args: argparse.Namespace) -> Wifi | None:
    from server.flash.first_boot import Wifi

    if args.wifi is None:
        return None
    if not 1 <= len(args.wifi.encode()) <= _LONGEST_SSID or not args.wifi.isprintable():
        raise ConfigError("--wifi is no name of a network", f"it has 1 to {_LONGEST_SSID} bytes")
    if args.wifi_country is None or re.fullmatch("[A-Za-z]{2}", args.wifi_country) is None:
        raise ConfigError(
            "--wifi needs --wifi-country: the radio stays off without it", "two letters, as DE, FR, GB or US"
        )
    password = None if args.wifi_open else _wifi_password(args)
    return Wifi(args.wifi, password, args.wifi_country.upper(), args.wifi_hidden)


def _wifi_password(args: argparse.Namespace) -> str:
    if args.wifi_password_file is not None:
        password = _read(args.wifi_password_file, "--wifi-password-file").strip("\r\n")
    elif sys.stdin.isatty():
        password = getpass.getpass(f"password of {args.wifi}: ")
    else:
        raise ConfigError("--wifi needs a password", "give --wifi-password-file FILE; or --wifi-open")
    is_phrase = _LEAST_PASSWORD <= len(password.encode()) <= _LONGEST_PASSWORD and password.isprintable()
    if not is_phrase and _PSK.fullmatch(password) is None:
        raise ConfigError(
            f"the password of {args.wifi} is no WPA password", f"it has {_LEAST_PASSWORD} to {_LONGEST_PASSWORD} bytes"
        )
    return password


def _time_zone(given: str | None) -> str | None:
    """Return the zone that was given, else this machine's; None: it has none."""
    if given is None:
        target = Path("/etc/localtime").resolve().as_posix()
        _, found, zone = target.partition("/zoneinfo/")
        return zone if found and _ZONE.fullmatch(zone) else None
    if _ZONE.fullmatch(given) is None:
        raise ConfigError(f"--time-zone {given!r} is no time zone", "as Europe/Berlin; see: timedatectl list-timezones")
    zones = Path("/usr/share/zoneinfo")
    if zones.is_dir() and not (zones / given).is_file():
        raise ConfigError(f"there is no time zone {given}", "see: timedatectl list-timezones")
    return given


def _read(path: Path, flag: str) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{flag} {path} cannot be read ({error})", "give a text file that you can read") from error
