"""Which devices are told of a mirror of the blobs: those whose version can read it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import UNSET

from edge_runtime.protocol.presence import BLOB_MIRROR

if TYPE_CHECKING:
    from msgspec import UnsetType

    from edge_runtime.protocol.presence import Birth


def mirror_for(birth: Birth | None, mirror: str | None) -> str | UnsetType:
    """Return what a message to a device says of the mirror.

    Args:
        birth: the device's announcement; None: it has made none.
        mirror: base address of the mirror; None: there is none.
    """
    return UNSET if mirror is None or birth is None or BLOB_MIRROR not in birth.methods else mirror
