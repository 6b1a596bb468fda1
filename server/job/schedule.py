"""``[schedule]`` of job.toml: what changes from round to round, in one table instead of in three places.

Its fields have older spellings, which stay: ``schedule``, ``front``, and ``forward_from`` of ``[stld]``. A job is kept,
sent and shown in these; the table is replaced by them before a job's fields are checked.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from edge_runtime.errors import ConfigError, wall
from edge_runtime.files.nearest import with_nearest

FROZEN_FRONT, TRAIN_LATER = "frozen", "train-after:"
"""Values of ``front``: never trained, and trained from the round on that follows."""
_TRAINED = "train"
_MOST_ROUNDS = 9_999_999


class Schedule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table. None: the job does not say it there.

    Attributes:
        learning_rate: the learning rate stays (``constant``), or falls in equal steps towards 0 at the end
            (``linear``); the job's ``schedule``.
        forward_from: the round, from 0, from which forward-only devices take part; ``forward_from`` of ``[stld]``.
        train_front_from: the round, from 0, from which forward-only devices train the front too; ``never``: it stays
            frozen. The job's ``front``.
    """

    learning_rate: Literal["constant", "linear"] | None = None
    forward_from: Annotated[int, msgspec.Meta(ge=0, le=_MOST_ROUNDS)] | None = None
    train_front_from: Annotated[int, msgspec.Meta(ge=0, le=_MOST_ROUNDS)] | Literal["never"] | None = None


def spread(table: dict[str, Any]) -> dict[str, Any]:
    """Return the content of job.toml with the older spellings in place of ``[schedule]``; without the table, as it is.

    Raises:
        ConfigError: a field of the table is unknown or wrong, says other than its older spelling, or needs ``[stld]``.
    """
    written = table.get("schedule")
    if not isinstance(written, dict):
        return table
    hint = "correct it; docs/configuration.md lists every field"
    with wall(lambda cause: ConfigError(f"[schedule]: {with_nearest(cause, Schedule)}", hint)):
        schedule = msgspec.convert(written, Schedule)
    found = {name: value for name, value in table.items() if name != "schedule"}
    if schedule.learning_rate is not None:
        found["schedule"] = schedule.learning_rate
    if schedule.train_front_from is not None:
        front = _front(schedule.train_front_from)
        if table.get("front", front) != front:
            raise _contradiction("train_front_from", schedule.train_front_from, f'front = "{table["front"]}"')
        found["front"] = front
    if schedule.forward_from is not None:
        found["stld"] = _with_forward_from(table.get("stld"), schedule.forward_from)
    return found


def _front(train_from: int | str) -> str:
    """Return ``front`` of a job whose front is trained from a round on."""
    if train_from == "never":
        return FROZEN_FRONT
    return f"{TRAIN_LATER}{train_from}" if train_from else _TRAINED


def _with_forward_from(stld: object, forward_from: int) -> object:
    """Return the table ``[stld]`` with the round from which forward-only devices take part."""
    if stld is None:
        raise ConfigError(
            f"[schedule] has forward_from = {forward_from}, and without [stld] no device backpropagates before it",
            "add [stld], or leave forward_from out",
        )
    if not isinstance(stld, dict):
        return stld  # decoding the job says what is wrong with it
    before = stld.get("forward_from", forward_from)
    if before != forward_from:
        raise _contradiction("forward_from", forward_from, f"forward_from = {before} of [stld]")
    return {**stld, "forward_from": forward_from}


def _contradiction(name: str, value: object, other: str) -> ConfigError:
    written = f'"{value}"' if isinstance(value, str) else value
    return ConfigError(f"[schedule] has {name} = {written}, the job also has {other}", "leave one of the two out")
