"""How values are written in pages; what is not known is a dash."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Callable

UNKNOWN = "–"
_DIGITS = 4
_UNITS = ("B", "kB", "MB", "GB", "TB")


def value(given: object) -> str:
    """Return a value as text: floats with four digits, lists with commas."""
    if given is None or given == "":
        return UNKNOWN
    if isinstance(given, bool):
        return "yes" if given else "no"
    if isinstance(given, float):
        return f"{given:.{_DIGITS}g}"
    if isinstance(given, (list, tuple, set)):
        return ", ".join(map(str, given)) or UNKNOWN
    return str(given)


def size(given: float | None) -> str:
    """Return bytes in the decimal unit in which they are below 1000."""
    if given is None:
        return UNKNOWN
    amount = float(given)
    for unit in _UNITS[:-1]:
        if abs(amount) < 1000:
            return f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:.3g} {_UNITS[-1]}"


def seconds(given: float | None) -> str:
    """Return a duration: seconds below two minutes, then minutes and hours."""
    if given is None:
        return UNKNOWN
    if given < 120:
        return f"{given:.3g} s"
    minutes, rest = divmod(round(given), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def short_hash(given: str | None) -> str:
    """Return the first digits of a SHA-256."""
    return UNKNOWN if given is None else given[:12]


def segment(given: object) -> str:
    """Return a value as one segment of a path, or one value of a query."""
    return quote(str(given), safe="")


FILTERS: dict[str, Callable[[Any], str]] = {
    "value": value,
    "size": size,
    "seconds": seconds,
    "short_hash": short_hash,
    "segment": segment,
}
