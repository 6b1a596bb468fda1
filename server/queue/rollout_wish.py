"""What an operator wishes of a rollout, read from the words in which commands and pages take it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_runtime.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_runtime.protocol.side_messages import ReleaseKind

LONGEST_SOAK_S = 90 * 86400.0
DEFAULT_GROUPS, DEFAULT_THRESHOLD, DEFAULT_SOAK = "1,5%,25%,100%", "5%", "0s"
_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True)
class Wanted:
    """A rollout that is asked for.

    Attributes:
        kind: what is rolled out.
        source: its absolute path on the server's machine; of an adapter, also the name of a job.
        bundle: absolute path of the bundle of an adapter that is given by its path.
        groups: the size of the groups up to and with each one, as ``"1"`` or ``"25%"``.
        error_threshold: share of a group's devices, 0 to 1, above which failures end the rollout.
        soak_s: seconds between the success of a group and the next.
        approve: whether each group waits for a resume.
    """

    kind: ReleaseKind
    source: str
    bundle: str | None
    groups: Sequence[str]
    error_threshold: float
    soak_s: float
    approve: bool


def sizes(text: str) -> list[str]:
    """Return the sizes of groups that are written with commas between them."""
    return [size.strip() for size in text.split(",") if size.strip()]


def share(text: str) -> float:
    """Return a share that is written as ``5%`` or ``0.05``.

    Raises:
        ConfigError: it is neither.
    """
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError as error:
        raise ConfigError(f"the error threshold {text!r} is no share", "give it as 5% or 0.05") from error


def seconds(text: str) -> float:
    """Return a time in seconds that is written as ``90``, ``90s``, ``30m``, ``1h`` or ``2d``.

    Raises:
        ConfigError: it is none of these.
    """
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhd]?)", text)
    if found is None:
        raise ConfigError(f"the soak {text!r} is no time", "give it as 30m or 1h")
    return float(found[1]) * _UNITS_S[found[2] or "s"]
