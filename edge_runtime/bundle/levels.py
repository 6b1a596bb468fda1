"""Levels: how much of a model a backprop device trains, and with which kind of training graph.

There are two kinds. A *dropout level* is a number: that many layers run, and all of them are trained; which ones, every
mini-batch draws anew. A *top level* is a text, ``top:3``: all layers run, and the last 3 are trained; nothing of the
layers below is kept for the backward pass. Manifests, jobs, plans, reports and profiles carry levels in this form, so
one that knows dropout levels alone is as it was before there were others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

MOST_LAYERS = 4096
TOP_LEVELS = "top-levels"
"""What a device's announcement lists among its methods if it can read a bundle with top levels, or a quantised base."""
TOP_PREFIX = "top:"
TopLevel = Annotated[str, msgspec.Meta(pattern=rf"^{TOP_PREFIX}[1-9][0-9]{{0,3}}(?!\n)$")]
Level = Annotated[int, msgspec.Meta(ge=1, le=MOST_LAYERS)] | TopLevel
LevelKind = Literal["drop", "top"]


def top_level(layers: int) -> str:
    """Return the level at which the last ``layers`` layers are trained."""
    return f"{TOP_PREFIX}{layers}"


def kind_of(level: Level) -> LevelKind:
    """Return the kind of a level."""
    return "top" if isinstance(level, str) else "drop"


def trained_layers(level: Level) -> int:
    """Return the number of layers that each mini-batch of a level trains."""
    return int(level.removeprefix(TOP_PREFIX)) if isinstance(level, str) else level


def run_layers(level: Level, n_layers: int) -> int:
    """Return the number of layers that each mini-batch of a level runs, of a model with ``n_layers``."""
    return n_layers if isinstance(level, str) else level


def forward_passes(level: Level, n_layers: int) -> float:
    """Return what a row costs at a level, in forward passes of the whole model: a backward pass counts as two."""
    return (run_layers(level, n_layers) + 2 * trained_layers(level)) / n_layers


def rank(level: Level) -> tuple[int, bool]:
    """Return the key by which levels are sorted: by the layers that they train, and a top level above a dropout one."""
    return trained_layers(level), isinstance(level, str)


def ascending(levels: Iterable[Level]) -> list[Level]:
    """Return levels in the order of ``rank``, each once."""
    return sorted(set(levels), key=rank)


def listed(levels: Iterable[Level]) -> str:
    """Return levels as text, with commas."""
    return ", ".join(map(str, levels))


def file_part(level: Level) -> str:
    """Return a level as a part of a file's name."""
    return str(level).replace(":", "_")
