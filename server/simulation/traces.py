"""Traces: when devices slow down and recover, vanish and come back. From a file, or drawn from a seed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec

from edge_runtime.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np


class TraceEvent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Something that happens to devices.

    Attributes:
        at_s: virtual seconds.
        device: a device's name, or a pattern with ``*``.
        slowdown: from now on a step takes so many times as long as at first; None: as before.
        here: False: it vanishes without a goodbye; True: it is back, started anew; None: as before.
    """

    at_s: Annotated[float, msgspec.Meta(ge=0, le=1e12)]
    device: str
    slowdown: Annotated[float, msgspec.Meta(gt=0, le=1e6)] | None = None
    here: bool | None = None


def read_traces(path: Path) -> list[TraceEvent]:
    """Read a trace: one event a line, JSON.

    Raises:
        ConfigError: no file, or a line that is no event; with its number.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the trace {path}: {error}", "give a file of JSON lines") from error
    events = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            events.append(msgspec.json.decode(line, type=TraceEvent))
        except msgspec.DecodeError as error:
            raise ConfigError(
                f"{path}, line {number}: {error}", 'an event is {"at_s": 60, "device": "pi-*", "slowdown": 2.5}'
            ) from error
    return events


def throttling(devices: Sequence[str], share: float, length_s: float, rng: np.random.Generator) -> list[TraceEvent]:
    """Draw a heat trace: a share of the devices slows down by 1.5 to 3 at some time, for a quarter of the run.

    Args:
        devices: names.
        share: of them.
        length_s: how long the run is thought to take.
        rng: where the draws come from.
    """
    events = []
    for device in devices:
        hot, begin, factor = rng.random(), rng.random(), rng.uniform(1.5, 3.0)
        if hot < share:
            begin_s = float(begin * 0.75 * length_s)
            events.append(TraceEvent(begin_s, device, slowdown=float(factor)))
            events.append(TraceEvent(begin_s + 0.25 * length_s, device, slowdown=1.0))
    return events
