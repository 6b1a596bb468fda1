"""Forms of pages, read with a bound and without a fault, whatever they hold."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from edge_runtime.errors import ConfigError

if TYPE_CHECKING:
    from litestar import Request

LARGEST_BYTES = 16 * 1024
"""Bytes of a form without long texts."""
_MOST_FIELDS = 20
_NUMBER = re.compile("[0-9]{1,15}", re.ASCII)


async def read_form(request: Request[Any, Any, Any], most_bytes: int = LARGEST_BYTES) -> dict[str, str]:
    """Return the fields of a form (``application/x-www-form-urlencoded``); of one that comes twice, the first.

    Args:
        request: has the form.
        most_bytes: that the form may have.

    Raises:
        ConfigError: it is too large, of another kind, or cannot be read.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise ConfigError("the request is no form", "send it from Covey's own page")
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > most_bytes:
            raise ConfigError(f"the form has more than {most_bytes} bytes", "shorten what you have written")
    try:
        found = parse_qs(data.decode(), keep_blank_values=True, max_num_fields=_MOST_FIELDS, errors="strict")
    except (ValueError, UnicodeError) as error:
        raise ConfigError("the form cannot be read", "send it from Covey's own page") from error
    return {name: values[0] for name, values in found.items()}


def field(form: dict[str, str], name: str) -> str:
    """Return a field's value; empty where it is missing."""
    return form.get(name, "")


def seen_of(form: dict[str, str]) -> int | None:
    """Return the number of the newest entry of the audit that a form was made after; None: the form has none."""
    seen = field(form, "seen")
    return int(seen) if _NUMBER.fullmatch(seen) else None
