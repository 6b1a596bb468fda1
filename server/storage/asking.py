"""How questions are asked of the ledger: every value is checked against the type of its answer.

What does not fit, or cannot be decoded, is a damaged ledger, and becomes the StorageError of Database.reading.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Executable

    from server.storage.ledger import Ledger

T = TypeVar("T")


def records(ledger: Ledger, kind: type[T], query: Executable, json: Mapping[str, Any] | None = None) -> list[T]:
    """Return a query's rows as records of a kind; ``json`` gives the types of columns that hold JSON."""
    rows = ledger.database.rows(query)
    with ledger.database.reading():
        for row in rows:
            for column, type_ in (json or {}).items():
                row[column] = None if row[column] is None else msgspec.json.decode(row[column], type=type_)
        return msgspec.convert(rows, list[kind])  # type: ignore[valid-type]


def tuples(ledger: Ledger, kind: Any, query: Executable) -> list[Any]:  # noqa: ANN401 a tuple type
    """Return a query's rows as tuples of a type: ``tuple[str, int]``."""
    rows = ledger.database.rows(query)
    with ledger.database.reading():
        return [msgspec.convert(tuple(row.values()), kind) for row in rows]
