"""Parquet rows, read in batches by pyarrow, which the extra ``parquet`` brings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edge_runtime.data.fields import likely_names
from edge_runtime.data.problems import Fault, Places
from edge_runtime.data.records import Records
from edge_runtime.errors import DataError, cause_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_BATCH = 1024
"""Rows that are decoded at once."""


def parquet_records(path: Path, wanted: Mapping[str, str], instead: Mapping[str, str]) -> Records:
    """Return the rows of a Parquet file, numbered from 1.

    Args:
        path: the file.
        wanted: names of the columns that rows need, by the setting of [data] that says the name; no other column is
            read. Empty: all are.
        instead: the same for columns that are read in their place where the file has these and lacks those, and beside
            them where it has both: a row has one or the other.

    Raises:
        DataError: pyarrow is not installed, or the file cannot be read, is damaged, or lacks a column.
    """
    try:
        import pyarrow as pa  # noqa: PLC0415 an extra
        from pyarrow import parquet  # noqa: PLC0415
    except ImportError as error:
        raise DataError(
            f"{path} is a Parquet file, which pyarrow reads, and pyarrow cannot be imported: {error}",
            "install it: pip install 'covey[parquet]'; or write the rows as JSON Lines",
            facts="its file is a Parquet file, and pyarrow is not installed",
        ) from error
    failures = (pa.ArrowException, OSError, ValueError, KeyError)
    try:
        file = parquet.ParquetFile(path, memory_map=False)
    except failures as error:
        raise _unreadable(path, error) from error
    columns = list(file.schema_arrow.names)
    if instead and set(instead.values()) <= set(columns):
        wanted = {**wanted, **instead} if set(wanted.values()) <= set(columns) else instead
    if any(field not in columns for field in wanted.values()):
        likely = likely_names(columns, wanted)
        missing = " and no ".join(repr(field) for field in wanted.values() if field not in columns)
        raise DataError(
            f"{path} has no column {missing}\n  likely: {likely.mistake}",
            likely.remedy,
            facts="it lacks a column",
        )
    twice = [field for field in wanted.values() if columns.count(field) > 1]
    if twice:
        raise DataError(
            f"{path} has {columns.count(twice[0])} columns {twice[0]!r}",
            "rename the columns that are not meant, or delete them",
            facts="it has two columns of one name",
        )

    def rows() -> Iterator[tuple[int, Mapping[str, Any] | Fault]]:
        number = 0
        try:
            for batch in file.iter_batches(_BATCH, columns=list(wanted.values()) or None):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
        except failures as error:
            raise _unreadable(path, error, after=number) from error

    return Records(rows(), f"Parquet, {file.metadata.num_rows} rows", [], Places("row"))


def _unreadable(path: Path, error: Exception, after: int = 0) -> DataError:
    if isinstance(error, OSError) and error.errno is not None:
        return DataError(
            f"cannot read {path}: {error.strerror or error}",
            "check the path and its permissions",
            facts="its file cannot be read",
        )
    where = f" after row {after}" if after else ""
    return DataError(
        f"{path} is damaged{where}, or no Parquet file: {cause_of(error)}",
        "write it again, or copy it again",
        facts=f"its file is damaged{where}",
    )
