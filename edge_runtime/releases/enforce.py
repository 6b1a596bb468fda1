"""Finds a release on disk or at the server and checks it; learns new release keys on the way."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from edge_runtime.errors import NetworkError, storage_error
from edge_runtime.files.atomic import write_atomically
from edge_runtime.releases.accepted import accept, floor
from edge_runtime.releases.check import Wanted, check_release, next_key_list, tells_of_other_keys
from edge_runtime.releases.pins import read_pins, write_pins
from edge_runtime.releases.statement import MOST_BYTES, ReleaseError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_runtime.releases.statement import KeyList, Kind, Release

_LOG = logging.getLogger(__name__)
RELEASE, KEYS = "/{sha256}/release", "/release-keys"
"""Where releases and keys are below the address of the server's blobs."""


def enforce(
    folder: Path, fleet: str, kind: Kind, sha256: str, ask: Callable[[str, int], bytes | None], stored: Path | None
) -> Release:
    """Return the release of something that is about to be loaded, of a device with pinned keys; see require_release."""
    wanted = Wanted(kind, fleet, sha256)
    pinned = read_pins(folder, fleet)
    data = None if stored is None else _stored(stored)
    if data is not None:
        try:
            return _accepted(folder, data, wanted, pinned)
        except ReleaseError as error:
            _LOG.info("the release on disk is not good any more (%s); asking the server", error.what)
    data = ask(RELEASE.format(sha256=sha256), MOST_BYTES)
    if data is None:
        raise ReleaseError(
            "unsigned",
            f"{wanted} is not signed by the fleet: the server has no release of it",
            "let the server take it as the operator does: covey job submit; it signs what it takes",
        )
    release = _accepted(folder, data, wanted, _with_news(folder, data, pinned, ask))
    if stored is not None:
        write_atomically(stored, data)
    return release


def _accepted(folder: Path, data: bytes, wanted: Wanted, pinned: KeyList) -> Release:
    """Return a release that is good, and remember its serial."""
    release = check_release(data, wanted, pinned.keys, lambda name: floor(folder, wanted.fleet, wanted.kind, name))
    accept(folder, release)
    return release


def _with_news(folder: Path, data: bytes, pinned: KeyList, ask: Callable[[str, int], bytes | None]) -> KeyList:
    """Return the keys to believe: newer ones, where the release knows of some and a pinned key vouches for them.

    Where they cannot be had, the pinned keys go on deciding.
    """
    if not tells_of_other_keys(data, pinned):
        return pinned
    try:
        news = ask(KEYS, MOST_BYTES)
        found = None if news is None else next_key_list(news, pinned)
    except (ReleaseError, NetworkError) as error:
        _LOG.warning("the fleet's newer release keys are not taken: %s", error.what)
        return pinned
    if news is None or found is None:
        return pinned
    write_pins(folder, news)
    _LOG.info("the fleet's release keys have changed: %d, list %d", len(found.keys), found.serial)
    return found


def _stored(path: Path) -> bytes | None:
    """Return what is kept, of which no more is read than a release can have; None: nothing can be read."""
    try:
        with path.open("rb") as file:
            return file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        _LOG.warning("%s; asking the server", storage_error(error, path).what)
        return None
