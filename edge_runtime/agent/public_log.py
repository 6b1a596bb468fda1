"""What of the device's log may leave the device: Covey's own words, numbers, and the public text of errors.

A line is made anew from the record's format and its arguments, never from the finished text, which may quote private
rows. A traceback stays here.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from edge_runtime.errors import CoveyError
from edge_runtime.network.cause import Cause
from edge_runtime.output import one_line
from edge_runtime.protocol.side_messages import LONGEST_LINE

if TYPE_CHECKING:
    import logging

_OWN = "edge_runtime."
_PRIVATE = ("edge_runtime.data.", "edge_runtime.output")
"""Loggers whose texts quote rows or tracebacks: of them only the format and numbers are public."""
_KEPT_BACK = "(on the device only)"
_SECRET = re.compile(r"(\w://)\S*@")
"""What stands between a scheme and the last @ of an address: user and password."""


def public_line(record: logging.LogRecord, home: str | None) -> str | None:
    """Return a record's public text on one line, at most LONGEST_LINE characters and an ellipsis.

    Args:
        record: the record.
        home: the owner's home directory, which is shown as ``~``; None: not known.

    Returns:
        The text; None where the record is of another library, whose words nobody has looked at.
    """
    if not record.name.startswith(_OWN) or not isinstance(record.msg, str):
        return None
    text = _format(record.msg, record.args, is_private=record.name.startswith(_PRIVATE))
    if record.exc_info:
        text += " (the traceback is on the device)"
    text = one_line(_SECRET.sub(r"\1…@", text))
    if home:
        text = re.sub(rf"{re.escape(home.rstrip('/'))}(?=/|\W|$)", "~", text)
    return text if len(text) <= LONGEST_LINE else f"{text[:LONGEST_LINE]}…"


def _format(words: str, arguments: object, *, is_private: bool) -> str:
    """Put public forms of the arguments into a format of the logging module."""
    if not arguments:
        return _KEPT_BACK if is_private and "%" not in words else words
    given = arguments if isinstance(arguments, tuple) else (arguments,)
    try:
        return words % tuple(_public(value, is_private=is_private) for value in given)
    except (TypeError, ValueError):  # a %d of something that is no number any more
        return words


def _public(value: object, *, is_private: bool) -> object:
    """Return what may be said of an argument: numbers as they are, errors without private words."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, CoveyError):
        return value.public
    if isinstance(value, BaseException):
        return type(value).__name__
    is_plain = isinstance(value, (str, Cause)) or hasattr(value, "__fspath__")
    return str(value) if is_plain and not is_private else _KEPT_BACK
