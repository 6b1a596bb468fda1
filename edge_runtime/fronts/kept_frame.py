"""The frame of a kept front, in the file of its rows: a device that has kept its rows then need not load the front.

Two records stand among the rows, under names that no row has, and with no tokens: the frame, and the start of the
machine that has last made or compared what is in the file. After another start, as of another machine that the card
was moved to, nothing of it is believed until it was compared.
"""

from __future__ import annotations

import hashlib
import zlib
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from edge_runtime.fronts.frame import Frame, Part

if TYPE_CHECKING:
    from edge_runtime.fronts.front_folder import FrontRows
    from edge_runtime.values import Tensor

FRAME_VERSION = 1
_FRAME = hashlib.sha256(f"covey frame {FRAME_VERSION}".encode()).digest()
_START = hashlib.sha256(b"covey start of the machine").digest()
_NOT_TENSORS = 0
"""The precision of these records: they have none."""


class _StoredPart(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """See frame.Part. ``full`` and ``short`` have the same type and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    full: bytes
    short: bytes
    token_axes: tuple[int, ...]
    has_batch: bool
    is_masked: bool


def encode_frame(frame: Frame) -> bytes:
    """Return a frame as bytes: equal frames give equal bytes."""
    parts = [
        _StoredPart(
            name,
            str(part.full.dtype),
            part.full.shape,
            part.full.tobytes(),
            part.short.tobytes(),
            part.token_axes,
            part.has_batch,
            part.is_masked,
        )
        for name, part in sorted(frame.parts.items())
    ]
    return zlib.compress(msgspec.msgpack.encode(parts), level=1)  # masks are nearly empty


def decode_frame(data: bytes) -> Frame | None:
    """Return the frame that ``encode_frame`` has written; None: these bytes are none."""
    try:
        parts = msgspec.msgpack.decode(zlib.decompress(data), type=list[_StoredPart])
        return Frame(
            {
                part.name: Part(
                    _tensor(part, part.full), _tensor(part, part.short), part.token_axes, part.has_batch, part.is_masked
                )
                for part in parts
            }
        )
    except (zlib.error, msgspec.MsgspecError, ValueError, TypeError):
        return None


def _tensor(part: _StoredPart, data: bytes) -> Tensor:
    return np.frombuffer(data, dtype=np.dtype(part.dtype)).reshape(part.shape)


def has_rows(rows: FrontRows) -> bool:
    """Whether the file has activations of rows."""
    return any(row.tokens for row in rows.file.rows.values())


def believed_frame(rows: FrontRows, start: str | None) -> Frame | None:
    """Return the frame in a file, if this machine has made or compared what is in the file since its start.

    Args:
        rows: the file.
        start: what names the start of the machine; None: not known.
    """
    if start is None or _bytes_of(rows, _START) != start.encode():
        return None
    data = _bytes_of(rows, _FRAME)
    return None if data is None else decode_frame(data)


def keep_frame(rows: FrontRows, frame: Frame, start: str | None) -> None:
    """Write that what is in a file is as this machine makes it now, and the frame with it.

    Args:
        rows: the file.
        frame: what ``learn_frame`` has found.
        start: see ``believed_frame``; None: nothing is written, for it would not be believed.
    """
    if start is None:
        return
    for name, data in ((_FRAME, encode_frame(frame)), (_START, start.encode())):
        if _bytes_of(rows, name) != data:
            rows.add(name, 0, _NOT_TENSORS, data)


def _bytes_of(rows: FrontRows, name: bytes) -> bytes | None:
    found = rows.find(name)
    return None if found is None else bytes(found[1])
