"""The records of a source of rows, before anybody checks what they say; every kind of file gives the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edge_runtime.data.problems import LINES, Places

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from edge_runtime.data.problems import Fault


@dataclass(frozen=True)
class Records:
    """The records of a source, read once.

    Attributes:
        items: the number of each record and its values by field, or what is wrong with it.
        form: what the source is, half a sentence for the user: ``CSV, comma, double quotes, header in line 1``.
        notes: what was recognised, as half sentences for the user; complete once the records are read.
        places: what the numbers count.
    """

    items: Iterator[tuple[int, Mapping[str, Any] | Fault]]
    form: str
    notes: list[str]
    places: Places = LINES
