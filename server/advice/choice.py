"""Chooses the job that an advice describes, from what its boards can do and what was measured of schedules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from server.advice.board import advise
from server.advice.schedules import kept_front, weighed_forward_from, weighed_frozen_front, weighed_kept_front
from server.advice.settings import Wanted, settings_for

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from edge_runtime.bundle.levels import Level
    from server.advice.board import Board, BoardAdvice
    from server.advice.schedules import Weighed
    from server.advice.settings import About, Settings


@dataclass(frozen=True)
class Choice:
    """A job for some boards.

    Attributes:
        settings: the job.
        advices: what each board would do in it.
        weighed: the schedules that were weighed, chosen or not.
    """

    settings: Settings
    advices: list[BoardAdvice]
    weighed: list[Weighed]


def choose(about: About, boards: Sequence[Board], tokens: int, behind: Mapping[int, Collection[Level]]) -> Choice:
    """Choose a job.

    Args:
        about: bundle, name and rows of the job.
        boards: the boards, as far as they are known.
        tokens: tokens of the longest row.
        behind: the levels of the bundle's training graphs that begin behind a split, by split.

    Raises:
        ConfigError: the name is none for a job.
    """
    settings = settings_for(about, Wanted(backprop=True))
    advices = [advise(board, settings, tokens) for board in boards]
    can = [advice.level is not None for advice in advices]
    if settings.backprop_source is None or not any(can):
        return _forward_only(about, boards, tokens, advices)
    manifest = about.manifest
    kept = kept_front(manifest, behind)
    weighed = weighed_kept_front(manifest, kept, all_backpropagate=all(can))
    if weighed.is_chosen:
        other = settings_for(about, Wanted(backprop=True, kept=kept))
        found = [advise(board, other, tokens) for board in boards]
        if all(advice.level is not None for advice in found):
            return Choice(other, found, [weighed])
        because = f"{weighed.because}; not chosen, because it does not fit the memory of every board"
        weighed = msgspec.structs.replace(weighed, is_chosen=False, because=because)
    if all(can):
        return Choice(settings, advices, [weighed])
    first, from_round = weighed_forward_from(manifest, settings.fitted.job.rounds)
    if first.is_chosen:
        settings = settings_for(about, Wanted(backprop=True, forward_from=from_round))
        advices = [advise(board, settings, tokens) for board in boards]
    return Choice(settings, advices, [weighed, first])


def _forward_only(about: About, boards: Sequence[Board], tokens: int, before: list[BoardAdvice]) -> Choice:
    """Choose a job without [stld], because no board can use it; ``before``: advice that says why."""
    settings = settings_for(about, Wanted(backprop=False))
    weighed = weighed_frozen_front(about.manifest, settings.fitted.split)
    if weighed.is_chosen:
        settings = settings_for(about, Wanted(backprop=False, is_frozen=True))
    advices = [
        msgspec.structs.replace(advise(board, settings, tokens), because=advice.because)
        for board, advice in zip(boards, before, strict=True)
    ]
    return Choice(settings, advices, [weighed])
