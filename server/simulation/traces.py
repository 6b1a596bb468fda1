"""Traces: when devices slow down, recover, vanish and return; read from a file, or drawn at random."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec

from edge_runtime.errors import ConfigError, wall

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import numpy as np


class TraceEvent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An event that happens to devices.

    Attributes:
        at_s: virtual seconds.
        device: name of a device, or a pattern with ``*``.
        slowdown: factor by which steps take longer than at the start from now on; None: no change.
        here: False: the device vanishes without a goodbye; True: it is back after a restart; None: no change.
    """

    at_s: Annotated[float, msgspec.Meta(ge=0, le=1e12)]
    device: str
    slowdown: Annotated[float, msgspec.Meta(gt=0, le=1e6)] | None = None
    here: bool | None = None


def read_traces(path: Path) -> list[TraceEvent]:
    """Read a trace: JSON, one event per line.

    Raises:
        ConfigError: the file cannot be read, or a line is not an event; the message has its number.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the trace {path}: {error}", "give a file of JSON lines") from error
    events = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        events.append(_read_event(line, f"{path}, line {number}"))
    return events


def _read_event(line: str, where: str) -> TraceEvent:
    hint = 'an event is {"at_s": 60, "device": "pi-*", "slowdown": 2.5}'
    with wall(lambda cause: ConfigError(f"{where}: {cause}", hint)):
        return msgspec.json.decode(line, type=TraceEvent)


def throttling(devices: Iterable[str], share: float, length_s: float, rng: np.random.Generator) -> list[TraceEvent]:
    """Draw a heat trace: some devices are 1.5 to 3 times slower for a quarter of the run.

    Args:
        devices: names of the devices.
        share: probability that a device gets hot.
        length_s: expected length of the run in virtual seconds.
        rng: source of the draws.
    """
    events = []
    for device in devices:
        hot, begin, factor = rng.random(), rng.random(), rng.uniform(1.5, 3.0)
        if hot < share:
            begin_s = float(begin * 0.75 * length_s)
            events.append(TraceEvent(begin_s, device, slowdown=float(factor)))
            events.append(TraceEvent(begin_s + 0.25 * length_s, device, slowdown=1.0))
    return events
