"""Forms of pages, read with a bound and without a fault, whatever they hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from edge_runtime.errors import ConfigError

if TYPE_CHECKING:
    from litestar import Request

_LARGEST_BYTES = 16 * 1024
_MOST_FIELDS = 20


async def read_form(request: Request[Any, Any, Any]) -> dict[str, str]:
    """Return the fields of a form (``application/x-www-form-urlencoded``); of one that comes twice, the first.

    Raises:
        ConfigError: it is too large, of another kind, or cannot be read.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise ConfigError("the request is no form", "send it from Covey's own page")
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > _LARGEST_BYTES:
            raise ConfigError(f"the form has more than {_LARGEST_BYTES} bytes", "shorten what you have written")
    try:
        found = parse_qs(data.decode(), keep_blank_values=True, max_num_fields=_MOST_FIELDS, errors="strict")
    except (ValueError, UnicodeError) as error:
        raise ConfigError("the form cannot be read", "send it from Covey's own page") from error
    return {name: values[0] for name, values in found.items()}


def field(form: dict[str, str], name: str) -> str:
    """Return a field's value; empty where it is missing."""
    return form.get(name, "")
