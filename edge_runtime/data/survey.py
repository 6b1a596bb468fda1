"""Looks at rows that can be used for what is probably not meant: repeated texts, one label alone, a wrong encoding.

Nothing here refuses a row. What it finds quotes no row, but stays on the device with the numbers of the lines.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_runtime.data.config import AUTO
from edge_runtime.data.problems import setting

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edge_runtime.data.config import DataConfig

_CONTINUATION = "\x80-\xbf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ"
_MISREAD = re.compile(f"[\xc2-\xf4][{_CONTINUATION}]{{1,3}}")
_NUMBER = re.compile(r"\s*[-+]?[\d.,]+(?:[eE][-+]?\d+)?\s*")
_REPLACEMENT = "\ufffd"
_FILE_ENCODINGS = (AUTO, "utf-8", "utf8", "utf-8-sig")


@dataclass(frozen=True)
class Finding:
    """What is probably not meant.

    Attributes:
        what: half a sentence.
        remedy: what mends it.
        numbers: numbers of the rows that show it; empty: all rows together do.
        firsts: for each of these rows, the number of the earlier row that it repeats; empty: none does.
    """

    what: str
    remedy: str
    numbers: Sequence[int] = ()
    firsts: Sequence[int] = ()


@dataclass(frozen=True)
class Repeats:
    """Rows whose text stands in an earlier row.

    Attributes:
        same: numbers of a row and of the earlier one with the same answer (label, or completion).
        other: numbers of a row and of the earlier one with another answer.
    """

    same: Sequence[tuple[int, int]]
    other: Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Lengths:
    """How long rows are, in tokens.

    Attributes:
        median: half of the rows have so many or fewer.
        percentile_95: 95 % of the rows have so many or fewer.
        longest: the most; a row never has more than the model's ``max_tokens``.
    """

    median: int
    percentile_95: int
    longest: int


def lengths_of(counts: Sequence[int]) -> Lengths:
    """Return how long rows are; ``counts``: the number of tokens of each, at least one."""
    ordered = sorted(counts)
    return Lengths(ordered[len(ordered) // 2], ordered[-(-95 * len(ordered) // 100) - 1], ordered[-1])


def repeats_of(texts: Sequence[str], answers: Sequence[object], numbers: Sequence[int]) -> Repeats:
    """Return which rows have the text of an earlier one.

    Args:
        texts: each row's text, or prompt.
        answers: each row's label, or completion.
        numbers: each row's number.
    """
    first: dict[str, int] = {}
    seen: dict[tuple[str, object], int] = {}
    same, other = [], []
    for text, answer, number in zip(texts, answers, numbers, strict=True):
        if (text, answer) in seen:
            same.append((number, seen[text, answer]))
            continue
        seen[text, answer] = number
        if text in first:
            other.append((number, first[text]))
        first.setdefault(text, number)
    return Repeats(same, other)


def findings_of_texts(texts: Sequence[str], numbers: Sequence[int], data: DataConfig) -> list[Finding]:
    """Return what the texts show: a wrong encoding, lost characters, a column of numbers.

    Args:
        texts: each row's text, or prompt with completion.
        numbers: each row's number.
        data: how they were read.
    """
    found = []
    pairs = list(zip(texts, numbers, strict=True))
    misread = [number for text, number in pairs if is_misread(text)]
    if misread:
        if data.encoding.lower() in _FILE_ENCODINGS:
            remedy = "save it again from its origin as UTF-8; or iconv -f UTF-8 -t WINDOWS-1252 FILE > MENDED"
            what = "another program read the texts with a wrong encoding before it saved them (é became Ã©)"
        else:
            remedy = setting([("encoding", "utf-8")])
            what = f"the file is UTF-8, and was read as {data.encoding} (é became Ã©)"
        found.append(Finding(what, remedy, misread))
    lost = [number for text, number in pairs if _REPLACEMENT in text]
    if lost:
        what = f"another program lost characters, and wrote {_REPLACEMENT} in their place"
        found.append(Finding(what, "save the texts again from their origin", lost))
    figures = [number for text, number in pairs if _NUMBER.fullmatch(text)]
    if 2 * len(figures) > len(pairs):
        what, remedy = "most texts are numbers", "name the field or column with the texts"
        found.append(Finding(f"{what}: their field may be another one", f"{remedy}: text_field under [data]", figures))
    return found


def is_misread(text: str) -> bool:
    """Whether a text has UTF-8 that was read as Windows-1252 or Latin-1, as ``Ã©`` for ``é``."""
    for match in _MISREAD.finditer(text):
        raw = b"".join(_as_byte(character) for character in match[0])
        n_bytes = 2 if raw[0] < 0xE0 else 3 if raw[0] < 0xF0 else 4
        try:
            raw[:n_bytes].decode("utf-8")
        except UnicodeDecodeError:
            continue
        return True
    return False


def _as_byte(character: str) -> bytes:
    return character.encode("windows-1252" if ord(character) > 0xFF else "latin-1")


def findings_of_labels(counts: Mapping[str, int]) -> list[Finding]:
    """Return what the numbers of rows of each label show: labels that no row has."""
    absent = [label for label, count in counts.items() if count == 0]
    if not absent:
        return []
    present = [label for label, count in counts.items() if count]
    names = ", ".join(map(repr, absent))
    mending = "if the file writes it otherwise, set label_names under [data]"
    if len(present) == 1:
        return [
            Finding(
                f"every row has the label {present[0]!r}: of one label alone a model learns to answer it always",
                f"add rows of {names}; {mending}; or name the column of the labels: label_field",
            )
        ]
    return [Finding(f"no row has the label {names}", f"nothing, if this device has none; {mending}")]


def findings_of_repeats(repeats: Repeats) -> list[Finding]:
    """Return what rows with the same text show."""
    found = []
    if repeats.other:
        what = "texts stand in several rows with different answers"
        found.append(Finding(what, "correct the wrong one, or delete it", *zip(*repeats.other, strict=True)))
    if repeats.same:
        what = "rows stand in the file more than once, and count more than others"
        found.append(Finding(what, "delete all but one of each", *zip(*repeats.same, strict=True)))
    return found


def findings_of_lengths(cut: Sequence[int], total: int, max_tokens: int) -> list[Finding]:
    """Return what the rows' lengths show.

    Args:
        cut: numbers of the rows that lost tokens.
        total: number of rows.
        max_tokens: what a row of the model has at most.
    """
    if 2 * len(cut) <= total:
        return []
    what = f"most rows are longer than the model's {max_tokens} tokens, and the model sees only a part of them"
    remedy = f"export a bundle with a larger --max-tokens than {max_tokens}, or write shorter texts"
    return [Finding(what, remedy, cut)]
