"""Reads flags that are lists with commas."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_runtime.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence


def names(text: str) -> list[str]:
    """Return the names in a list, without spaces around them."""
    return [part.strip() for part in text.split(",")]


def numbers(flag: str, text: str) -> list[int]:
    """Return the whole numbers in a list.

    Raises:
        ConfigError: an entry is not a whole number.
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(
            f"{flag} {text!r} is not a list of numbers", f"write whole numbers with commas: {flag} 3,4,5"
        ) from error


def shares(flag: str, text: str) -> list[float]:
    """Return the shares in a list; whether they are above 0 and at most 1 is not checked.

    Raises:
        ConfigError: an entry is not a number.
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(
            f"{flag} {text!r} is not a list of shares", f"write shares with commas: {flag} 1.0,0.5"
        ) from error


def levels(flag: str, texts: Sequence[str]) -> tuple[list[float], list[int]]:
    """Return the shares of active layers, and the numbers of layers of top levels, in ``drop:1.0,0.5 top:6,3,1``.

    What stands in front of ``drop:`` and ``top:`` is a share. Whether the numbers fit the model is not checked.

    Raises:
        ConfigError: an entry is neither a share nor, after ``top:``, a whole number.
    """
    found: dict[str, list[str]] = {"drop": [], "top": []}
    for text in texts:
        kind = "drop"
        for entry in text.split(","):
            named, colon, number = entry.strip().partition(":")
            if colon and named not in found:
                raise ConfigError(
                    f"{flag} {text!r}: there is no kind of level {named!r}", f"write {flag} drop:1.0,0.5 top:6,3,1"
                )
            kind, entry_text = (named, number) if colon else (kind, entry)
            found[kind].append(entry_text)
    dropped, tops = (",".join(found[kind]) for kind in ("drop", "top"))
    return shares(flag, dropped) if dropped else [], numbers(f"{flag} top:", tops) if tops else []
