"""A level in two columns of ``offers``: the number of layers that it trains, and ``top`` where it is a top level."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import Text, case, cast

from edge_runtime.bundle.levels import TOP_PREFIX, kind_of, trained_layers
from server.storage.tables import OFFERS

if TYPE_CHECKING:
    from edge_runtime.bundle.levels import Level

_TOP = "top"
_NUMBER = cast(OFFERS.c.level, Text)
LEVEL = case((OFFERS.c.level_kind == _TOP, f'"{TOP_PREFIX}' + _NUMBER + '"'), else_=_NUMBER).label("level")
"""The level of an offer as JSON, to be decoded as a Level; NULL: forward-only."""


def level_columns(level: Level | None) -> dict[str, int | str | None]:
    """Return the values of an offer's columns for a level; None: forward-only."""
    if level is None:
        return {"level": None, "level_kind": None}
    return {"level": trained_layers(level), "level_kind": _TOP if kind_of(level) == _TOP else None}
