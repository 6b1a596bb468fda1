"""Finds profiles: in files, in the folders of boards, and in the ledger."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.errors import ConfigError, ProfileError
from edge_runtime.protocol.profile_check import decode_profile
from server.storage.device_queries import fleets_with_profiles_of, newest_profile
from server.storage.ledger import Ledger
from server.storage.ledger_address import has_ledger

if TYPE_CHECKING:
    from edge_runtime.protocol.profile import Profile

LATENCY_FILE = "latency.json"
"""The profile in a board's folder."""


def read_profile(path: Path) -> Profile:
    """Read a profile from a file, or from the latency.json of a folder.

    Raises:
        ConfigError: the file cannot be read.
        ProfileError: the profile is invalid; the message names the file.
    """
    path = path / LATENCY_FILE if path.is_dir() else path
    try:
        return decode_profile(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read the profile {path}: {error.strerror}", "give latency.json files") from error
    except ProfileError as error:
        raise ProfileError(f"{path}: {error.what}", error.hint) from error


def find_profile(name: str, profile_dir: Path, ledger_file: Path, fleet: str | None = None) -> Profile:
    """Return the profile of a file or folder, of a board, or the last valid one that a device published.

    Args:
        name: path of a file or folder, name of a board, or name of a device; tried in this order.
        profile_dir: has one folder per board.
        ledger_file: the server's ledger; may be missing.
        fleet: the device's fleet; None: any.

    Raises:
        ConfigError: there is no such profile (the message lists where it was looked for), or devices of two fleets
            have this name.
        ProfileError: the profile is invalid.
    """
    for path in (Path(name), profile_dir / name):
        if path.is_file() or (path / LATENCY_FILE).is_file():
            return read_profile(path)
    profile = _published(name, ledger_file, fleet) if has_ledger(ledger_file) else None
    if profile is None:
        raise ConfigError(
            f"there is no profile {name}: no file, no {profile_dir / name / LATENCY_FILE}, no device in {ledger_file}",
            "measure one: covey-edge profile --bundle BUNDLE --output FILE, or --config edge.toml",
        )
    return profile


def _published(device: str, ledger_file: Path, fleet: str | None) -> Profile | None:
    ledger = Ledger(ledger_file, read_only=True)
    try:
        fleets = fleets_with_profiles_of(ledger, device) if fleet is None else [fleet]
        if len(fleets) > 1:
            raise ConfigError(f"{device} is a device of {' and of '.join(fleets)}", "say which: --fleet FLEET")
        return newest_profile(ledger, fleets[0], device) if fleets else None
    finally:
        ledger.close()
