"""Types of the ledger's columns, the same values in SQLite and in PostgreSQL; and values within JSON columns."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from sqlalchemy import BigInteger, Integer, LargeBinary, String, Text, TypeDecorator, literal_column
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Dialect
    from sqlalchemy.sql.compiler import SQLCompiler
    from sqlalchemy.types import TypeEngine

_NUL = "\x00"
_ESCAPED_NUL = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Words(TypeDecorator[str]):
    """Text of any length.

    PostgreSQL takes no NUL: it is replaced, also where JSON writes it as an escape. There, texts are ordered by their
    code points, as SQLite orders them, whatever the database's language is.
    """

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Return the database's own type."""
        return dialect.type_descriptor(Text(collation="C") if dialect.name == "postgresql" else Text())

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Return a value as it goes into the database."""
        return without_nul(value) if dialect.name == "postgresql" and isinstance(value, str) else value


def without_nul(text: str | None) -> str | None:
    """Return a text with U+FFFD for each NUL, and for each escape that stands for one in JSON."""
    if text is None or (_NUL not in text and "u0000" not in text):
        return text
    return _ESCAPED_NUL.sub(lambda found: found[1] + _REPLACEMENT, text.replace(_NUL, _REPLACEMENT))


class Bytes(LargeBinary):
    """Bytes, returned as they are: SQLAlchemy would make as many zeros of a number that a damaged file has there."""

    cache_ok = True

    def result_processor(self, dialect: Dialect, coltype: object) -> None:
        """Return no conversion."""


Whole = Integer().with_variant(BigInteger(), "postgresql")
"""Integers of 64 bits: SQLite's are always."""


class _JsonPart(FunctionElement[Any]):
    """A value within a JSON document: its arguments are the document and the names that lead to the value."""

    inherit_cache = True
    name = "covey_json_part"


def json_text(document: ColumnElement[Any], *names: str) -> ColumnElement[Any]:
    """Return the value at names within a JSON document, as text; objects are written as JSON. NULL: there is none.

    Args:
        document: the JSON document.
        names: of objects' members, from the outermost one; part of the statement, so never what a user writes.
    """
    return _JsonPart(document, *map(_constant, names))


def _constant(name: str) -> ColumnElement[str]:
    """Return a name as part of a statement: what SQLAlchemy keeps of a statement then has the name in it."""
    if not name.isidentifier():
        raise ValueError(f"{name!r} is no name")
    return literal_column(f"'{name}'", String)


@compiles(_JsonPart, "sqlite")
def _part_in_sqlite(element: _JsonPart, compiler: SQLCompiler, **kw: object) -> str:
    document, *names = (compiler.process(clause, **kw) for clause in element.clauses)
    path = ".".join(name.strip("'") for name in names)
    return f"json_extract({document}, '$.{path}')"


@compiles(_JsonPart, "postgresql")
def _part_in_postgres(element: _JsonPart, compiler: SQLCompiler, **kw: object) -> str:
    document, *names = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"json_extract_path_text(CAST({document} AS JSON), {', '.join(names)})"
