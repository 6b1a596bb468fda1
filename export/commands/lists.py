"""Reads flags that are lists with commas."""

from __future__ import annotations

from edge_runtime.errors import ConfigError


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
