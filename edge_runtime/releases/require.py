"""Has a release of something before it is loaded. Without pinned keys the library of signatures is not loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_runtime.releases.statement import PINS_FILE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_runtime.releases.statement import Kind, Release


def require_release(
    folder: Path,
    fleet: str,
    kind: Kind,
    sha256: str,
    ask: Callable[[str, int], bytes | None],
    stored: Path | None = None,
) -> Release | None:
    """Return the release of something that is about to be loaded; None: this device has no pinned keys.

    Args:
        folder: the device's trust folder, with the pinned keys and the serials that were taken.
        fleet: the device's fleet.
        kind: what is to be loaded.
        sha256: its hash; that the content has it is for the caller to check.
        ask: fetches a small resource below the address of the blobs (its path, the most bytes); None: the server has
            none.
        stored: where the release is kept, so that what is on disk can be loaded without the server; None: nowhere.

    Raises:
        ReleaseError: it must not be loaded: unsigned, foreign, altered, of another fleet or content, or older.
        NetworkError: the server cannot be asked.
        StorageError: pinned keys or serials are damaged, or a file cannot be written.
    """
    if not (folder / PINS_FILE).exists():
        return None
    from edge_runtime.releases.enforce import enforce  # noqa: PLC0415 megabytes, for members with keys alone

    return enforce(folder, fleet, kind, sha256, ask, stored)
