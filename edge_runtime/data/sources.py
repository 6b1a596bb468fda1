"""Chooses what reads a source of rows, by its name: JSON, CSV, Parquet, or a directory of text files."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from edge_runtime.data.csv_rows import csv_records
from edge_runtime.data.json_lines import json_records
from edge_runtime.data.text_file import open_text
from edge_runtime.data.text_folder import folder_records
from edge_runtime.data.transform import transformed
from edge_runtime.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from edge_runtime.data.config import DataConfig
    from edge_runtime.data.records import Records

_JSON, _CSV, _PARQUET = (".jsonl", ".ndjson", ".json"), (".csv", ".tsv"), (".parquet", ".pq")


def open_records(
    data: DataConfig,
    wanted: Mapping[str, str],
    is_label: Callable[[str], bool],
    instead: Mapping[str, str] = MappingProxyType({}),
) -> Records:
    """Return the records of a source, after ``data.transform`` where there is one.

    Args:
        data: the file or directory, and how it is written.
        wanted: names of the fields that rows need, by the setting of [data] that says the name.
        is_label: whether a value is a label, by which a first row is told from a header.
        instead: fields that rows may have in their place, where they can hold more than text (not in CSV).

    Raises:
        DataError: it cannot be read, or is of an unknown kind; see each reader and transformed.
        ConfigError: the encoding does not exist.
    """
    if not data.transform:
        return _records(data, wanted, is_label, instead)
    return transformed(_records(data, {}, is_label, {}), data.transform, Path(data.path))


def _records(
    data: DataConfig, wanted: Mapping[str, str], is_label: Callable[[str], bool], instead: Mapping[str, str]
) -> Records:
    path = Path(data.path)
    kind = path.suffix.lower()
    if path.is_dir():
        return folder_records(path, data)
    if kind in _PARQUET:
        from edge_runtime.data.parquet_rows import parquet_records  # noqa: PLC0415 only where somebody has such a file

        return parquet_records(path, wanted, instead)
    if kind in _JSON:
        return json_records(open_text(path, data.encoding), (*wanted.values(), *instead.values()))
    if kind in _CSV:
        return csv_records(open_text(path, data.encoding), data, wanted, is_label)
    if not path.exists():
        raise DataError(f"there is no {path}", "check the path", facts="its file cannot be read")
    raise DataError(
        f"{path}: unknown kind of file {path.suffix!r}",
        "give a .jsonl, .json, .csv, .tsv or .parquet file, or a directory with a folder of text files for each label",
        facts="its file is of an unknown kind",
    )
