"""Reads a TOML file into a msgspec struct; an error names the file, the field and what to write there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from edge_runtime.errors import ConfigError, wall
from edge_runtime.files.nearest import with_nearest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

StructT = TypeVar("StructT")


def read_toml(
    path: Path, kind: type[StructT], prepare: Callable[[dict[str, Any]], dict[str, Any]] | None = None
) -> StructT:
    """Read a TOML file into a struct; ``prepare`` may change the table before its types are checked.

    Raises:
        ConfigError: no file, not TOML, an unknown field, a wrong type or value.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", "check the path") from error
    hint = "correct the file; docs/configuration.md lists every field"
    with wall(lambda cause: ConfigError(f"{path}: {with_nearest(cause, kind)}", hint)):
        table = msgspec.toml.decode(data, type=dict[str, Any])
        return msgspec.convert(table if prepare is None else prepare(table), kind)
