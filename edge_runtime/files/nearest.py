"""Names the known field that is nearest to an unknown one: most unknown fields are misspelt."""

from __future__ import annotations

import difflib
import re
from typing import Any

import msgspec

_UNKNOWN = re.compile(r"unknown field `(.*?)`(?: - at `\$\.?(.*?)`)?$", re.DOTALL)


def with_nearest(cause: str, kind: type) -> str:
    """Return a decoder's complaint; where it is about an unknown field, with the nearest field of the same table.

    Args:
        cause: msgspec's text.
        kind: the struct that was decoded.
    """
    found = _UNKNOWN.search(cause)
    if found is None:
        return cause
    table = msgspec.inspect.type_info(kind)
    for part in filter(None, (found[2] or "").split(".")):
        table = _field(table, part)
    names = [field.encode_name for field in getattr(table, "fields", ())]
    near = difflib.get_close_matches(found[1], names, n=1, cutoff=0.5)
    return f"{cause} (did you mean `{near[0]}`?)" if near else cause


def _field(table: Any, name: str) -> Any:  # noqa: ANN401 msgspec's types of types have no common base
    """Return the type of a table's field, without None; None where there is none."""
    for field in getattr(table, "fields", ()):
        if field.encode_name == name:
            kinds = getattr(field.type, "types", (field.type,))
            return next((kind for kind in kinds if hasattr(kind, "fields")), None)
    return None
