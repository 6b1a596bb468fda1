"""JSON objects as rows: an object knows which of its keys came more than once, and what is no object is named."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edge_runtime.data.problems import Fault

if TYPE_CHECKING:
    from collections.abc import Sequence


class _Object(dict[str, Any]):
    """A JSON object that knows which of its keys came more than once."""

    repeated: frozenset[str] = frozenset()


def with_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of its keys and values; json calls it (``object_pairs_hook``)."""
    made = _Object(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        made.repeated = frozenset(name for name in made if names.count(name) > 1)
    return made


def checked(record: object, fields: Sequence[str]) -> dict[str, Any] | Fault:
    """Return a decoded value where it is an object, or what is wrong with it.

    Args:
        record: what json has decoded, with the hook with_repeated.
        fields: names of the fields that must not come twice.
    """
    if not isinstance(record, _Object):
        kind = "array" if isinstance(record, list) else "shape"
        return Fault(f"not a JSON object but {type(record).__name__}", kind)
    twice = [field for field in fields if field in record.repeated]
    if twice:
        return Fault(f"{twice[0]!r} comes twice", "repeated")
    return record
