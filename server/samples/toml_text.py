"""Writes job.toml and edge.toml for the demo, benchmarks and tests."""

from __future__ import annotations

import json
from typing import Any


def toml(fields: dict[str, Any]) -> str:
    """Return fields as TOML, one per line: numbers, booleans, strings, lists of them, and tables as inline tables."""
    return "".join(f"{key} = {_value(value)}\n" for key, value in fields.items())


def _value(value: object) -> str:
    if not isinstance(value, dict):
        return json.dumps(value)  # TOML writes these values as JSON does
    return "{" + ", ".join(f"{key} = {_value(entry)}" for key, entry in value.items()) + "}"
