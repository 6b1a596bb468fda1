"""The release keys that a device believes: a signed list in its trust folder, so that damage to it is seen."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from edge_runtime.errors import StorageError, storage_error
from edge_runtime.files.aside import set_aside
from edge_runtime.files.atomic import write_atomically
from edge_runtime.releases.check import own_key_list
from edge_runtime.releases.statement import MOST_BYTES, PINS_FILE, ReleaseError

if TYPE_CHECKING:
    from pathlib import Path

    from edge_runtime.releases.statement import KeyList

_LOG = logging.getLogger(__name__)


def read_pins(folder: Path, fleet: str) -> KeyList:
    """Read the pinned keys.

    Raises:
        StorageError: the file is damaged, or is another fleet's. Nothing is loaded without it.
    """
    path = folder / PINS_FILE
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise storage_error(error, path) from error
    try:
        return own_key_list(data, fleet)
    except ReleaseError as error:
        raise StorageError(
            f"{path} is damaged: {error.what}; nothing is loaded without the fleet's release keys",
            "covey-edge renew --now fetches them from the server again",
        ) from error


def take_key_list(folder: Path, fleet: str, data: bytes) -> bool:
    """Pin the keys of a list that came over a connection to the fleet's own server; return whether they are new.

    The connection has to be one that the fleet's authority vouches for: that of joining and renewing. A list that is
    older than the pinned one changes nothing. A damaged file is set aside and replaced.

    Raises:
        ReleaseError: the list is damaged, or another fleet's.
        StorageError: it cannot be written.
    """
    new = own_key_list(data, fleet)
    if (folder / PINS_FILE).exists():
        try:
            old = read_pins(folder, fleet)
        except StorageError as error:
            set_aside(folder / PINS_FILE, error.what)
        else:
            if new.serial < old.serial:
                _LOG.warning(
                    "the server's list of release keys has serial %d, this device has %d and keeps it: "
                    "was an old backup of the server's trust/ restored? covey fleet rotate-release-key makes a new one",
                    new.serial,
                    old.serial,
                )
            if new.serial <= old.serial:
                return False
    write_pins(folder, data)
    _LOG.info("the fleet's release keys were taken: %d, list %d", len(new.keys), new.serial)
    return True


def write_pins(folder: Path, data: bytes) -> None:
    """Pin a signed list that was checked.

    Raises:
        StorageError: it cannot be written.
    """
    write_atomically(folder / PINS_FILE, data)
