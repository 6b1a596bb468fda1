"""What is wrong with single rows, and one summary of it: the first lines, the likely mistake, and what mends it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edge_runtime.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SHOWN_PROBLEMS = 5


@dataclass(frozen=True)
class Fault:
    """What is wrong with one row.

    Attributes:
        what: half a sentence. It may quote the row, so it stays on the device.
        kind: rows with the same kind of fault are likely to have one cause.
        is_skipped: whether the row alone is left out and training goes on; otherwise the file is refused as it is.
        seen: a wrong label as the file writes it, or the names of the row's fields.
    """

    what: str
    kind: str
    is_skipped: bool = False
    seen: tuple[str, ...] = ()


@dataclass(frozen=True)
class Likely:
    """The likely mistake behind many wrong rows, and what mends it; both stay on the device."""

    mistake: str
    remedy: str


NUL_MARK = "\udc00"
"""Stands for a NUL byte in a CSV line, because the csv module of Python 3.10 refuses NUL bytes."""
NUL_BYTES = Fault("it has NUL bytes; a loss of power or a broken transfer leaves them", "damage", is_skipped=True)
HALF_CHARACTER = Fault("it has half a character; a cut emoji leaves one (a lone surrogate)", "damage", is_skipped=True)
_SURROGATE = re.compile("[\ud800-\udfff]")

Problems = list[tuple[int, Fault]]
"""Numbers of rows, from 1, each with its fault; Places says what they count."""


@dataclass(frozen=True)
class Places:
    """What the numbers of a source's rows count, and how a message names one row.

    Attributes:
        noun: what is counted: ``line``, ``row`` (Parquet), ``object`` (one JSON document), ``file`` (a directory).
        names: what says more than the number, by number: names[0] is that of number 1. They are complete once the
            source was read, and stay on the device: a file's name may be private. Empty: the numbers say all.
    """

    noun: str = "line"
    names: list[str] = field(default_factory=list)

    def one(self, number: int) -> str:
        """Return the name of one place: ``line 3``, ``object 3 (line 12)``, ``good/review.txt``."""
        return self.names[number - 1] if self.names else f"{self.noun} {number}"

    def first_of(self, numbers: Sequence[int]) -> str:
        """Return the first of some places: ``lines 3, 5 and 7 more``. Only numbers: it may leave the device."""
        noun = self.noun if len(numbers) == 1 else f"{self.noun}s"
        return f"{noun} {_some([str(number) for number in numbers])}"

    def names_of(self, numbers: Sequence[int]) -> str:
        """Return the first of some places by their names, for whoever may see the rows."""
        return _some([self.one(number) for number in numbers]) if self.names else self.first_of(numbers)


LINES = Places()


def _some(words: Sequence[str]) -> str:
    more = len(words) - SHOWN_PROBLEMS
    return ", ".join(words[:SHOWN_PROBLEMS]) + (f" and {more} more" if more > 0 else "")


def numbers_of(problems: Problems) -> list[int]:
    """Return the numbers of problems."""
    return [number for number, _ in problems]


def damage(text: str) -> Fault | None:
    """Return why a text cannot be encoded, whatever the tokenizer; None: it can."""
    return HALF_CHARACTER if _SURROGATE.search(text) else None


def counted(count: int, noun: str) -> str:
    """Return a count with its noun in the right number."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


def listed(problems: Problems, places: Places = LINES) -> list[str]:
    """Return the first problems, one line of text each, and how many more there are."""
    lines = [f"{places.one(number)}: {fault.what}" for number, fault in problems[:SHOWN_PROBLEMS]]
    more = len(problems) - SHOWN_PROBLEMS
    return [*lines, f"… and {more} more"] if more > 0 else lines


def refusal(path: Path, wrong: Problems, places: Places, total: int, wanted: str, likely: Likely | None) -> DataError:
    """Return the error of a source with wrong rows.

    Args:
        path: the file or directory.
        wrong: its wrong rows, at least one.
        places: what their numbers count.
        total: number of its rows.
        wanted: what each row needs.
        likely: the mistake that explains most of the wrong rows; None: none is known.
    """
    count = f"{len(wrong)} of {total} rows are wrong"
    lines = listed(wrong, places) + ([] if likely is None else [f"likely: {likely.mistake}"])
    return DataError(
        f"{path}: {count}\n  " + "\n  ".join(lines),
        f"{f'correct these {places.noun}s' if likely is None else likely.remedy}; each row needs {wanted}",
        facts=f"{count}, the first in {places.first_of(numbers_of(wrong)[:SHOWN_PROBLEMS])}",
    )


def none_usable(path: Path, skipped: Problems, places: Places, wanted: str) -> DataError:
    """Return the error of a source without any row to train on."""
    if not skipped:
        return DataError(
            f"{path} has no rows", f"write one row per {places.noun}, with {wanted}", facts="it has no rows"
        )
    what = f"none of its {counted(len(skipped), 'row')} can be used"
    return DataError(
        f"{path}: {what}\n  " + "\n  ".join(listed(skipped, places)),
        f"correct these {places.noun}s; each row needs {wanted}",
        facts=f"{what}, see {places.first_of(numbers_of(skipped))}",
    )


def commonest(problems: Problems) -> str:
    """Return the kind that most problems have; the earliest of equals."""
    kinds = [fault.kind for _, fault in problems]
    return max(dict.fromkeys(kinds), key=kinds.count)


def setting(changes: Sequence[tuple[str, str]]) -> str:
    """Return how to set fields of [data]: in edge.toml, and as options of ``data check``."""
    toml = " and ".join(f"{name} = {_toml(value)}" for name, value in changes)
    options = " ".join(f"--{name.replace('_', '-')} {_shell(value)}" for name, value in changes)
    return f"set {toml} under [data] in edge.toml (data check: {options})"


def _toml(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\t", "\\t") + '"'


def _shell(value: str) -> str:
    return value if re.fullmatch(r"[\w.,=+-]+", value) else '"' + value.replace('"', '\\"') + '"'
