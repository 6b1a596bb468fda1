"""What all messages share: the protocol's version. See messages.py."""

from __future__ import annotations

import msgspec

VERSION = 5
ENVELOPE_BYTES = 384
"""Bytes that are kept free in every payload for the envelope of a signature (signed.py)."""


class ProtocolMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", kw_only=True):
    """The base of every message: it carries the version."""

    v: int = VERSION
