"""Writes the fields that come from the server into edge.toml; what else is in it stays, and a copy of it is kept."""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any

import msgspec

from edge_runtime.errors import ConfigError, wall
from edge_runtime.files.atomic import write_atomically

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_NEW = """\
# Written by covey-edge join. docs/configuration.md lists every field.
{fields}
[data]
# the private rows: a .jsonl, .csv or .tsv file, relative to this file
path = {path}
"""


def check_may_write(path: Path, device: str, tls: Mapping[str, str], *, may_change: bool) -> None:
    """Check, before a token is used, that a configuration that is there already is this device's.

    Args:
        path: the configuration file, which may not exist.
        device: the device's name in the fleet.
        tls: the ``[tls]`` fields that it will have.
        may_change: whether it may be another one's: ``--force``.

    Raises:
        ConfigError: it is another one's, or is not TOML.
    """
    table = _read(path)
    if table is None or may_change:
        return
    for field, value in (("name", device), ("tls", dict(tls))):
        if table.get(field) != value:
            raise _different(path, field)


def write_fields(path: Path, fields: Mapping[str, Any], data_path: str, *, may_change: bool) -> bool:
    """Write fields into a configuration file; return whether it had to be written.

    Args:
        path: the file.
        fields: top-level fields with their new values; a table replaces the old one of its name.
        data_path: ``[data] path`` of a new file.
        may_change: whether fields of a file that is there may change: ``--force``. A copy of the file is kept.

    Raises:
        ConfigError: a field would change, and must not.
        StorageError: the file cannot be written.
    """
    table = _read(path)
    if table is None:
        text = _NEW.format(fields=toml_text(fields), path=_value(data_path))
        write_atomically(path, text.encode())
        return True
    changed = [field for field, value in fields.items() if table.get(field) != value]
    if not changed:
        return False
    if not may_change:
        raise _different(path, changed[0])
    write_atomically(path.with_name(f"{path.name}.before-join"), path.read_bytes())
    write_atomically(path, _changed_text(path, table, {field: fields[field] for field in changed}).encode())
    return True


def _changed_text(path: Path, table: Mapping[str, Any], fields: Mapping[str, Any]) -> str:
    """Return a file's text with new values: its comments stay where each field has a line of its own."""
    text, wanted = path.read_text(encoding="utf-8"), {**table, **fields}
    for field, value in fields.items():
        line = re.compile(rf"^{re.escape(field)}[ \t]*=.*$", re.MULTILINE)
        new = f"{field} = {_value(value)}".replace("\\", r"\\")
        text = line.sub(new, text, count=1)
    try:
        is_right = msgspec.toml.decode(text, type=dict[str, Any]) == wanted
    except (msgspec.MsgspecError, ValueError):
        is_right = False
    return text if is_right else toml_text(wanted)


def toml_text(table: Mapping[str, Any]) -> str:
    """Return a table as TOML: one line for each field, tables in line.

    Raises:
        ConfigError: a value is of a kind that edge.toml never has: a date.
    """
    return "".join(f"{_key(key)} = {_value(value)}\n" for key, value in table.items())


def _read(path: Path) -> dict[str, Any] | None:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", "check the path") from error
    with wall(lambda cause: ConfigError(f"{path}: {cause}", "correct the file, or move it away")):
        return msgspec.toml.decode(data, type=dict[str, Any])


def _different(path: Path, field: str) -> ConfigError:
    return ConfigError(
        f"{path} is there already, and its {field} is another one",
        "--force changes what comes from the fleet, keeps the other settings, and keeps a copy of the file; "
        "or give another file: --config",
    )


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else _string(key)


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else str(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_value(entry) for entry in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(key)} = {_value(entry)}" for key, entry in value.items()) + "}"
    raise ConfigError(f"the configuration has {value!r}, which no field can be", "write it as text, in quotes")


def _string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
