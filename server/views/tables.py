"""Tables for people: figures and hashes shortened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edge_runtime import output

if TYPE_CHECKING:
    from collections.abc import Sequence


def short_table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    """Return a table of some columns of rows; figures have four digits, hashes twelve."""
    return output.table(columns, [[short(row[column]) for column in columns] for row in rows])


def short(value: object) -> object:
    """Return a value as a table shows it."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} {entry}" for key, entry in value.items())
    return value[:12] if isinstance(value, str) and len(value) == 64 else value
