"""A data file as numbered lines of text: its encoding is recognised, or the first byte that does not fit is named."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edge_runtime.data.config import AUTO
from edge_runtime.data.problems import setting
from edge_runtime.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MARK = "\ufeff"
"""The byte order mark: it belongs at a file's beginning; files that were put together have more of them."""
HALF = "\udc80"
"""Stands for a character of which the file holds only some bytes."""
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_OTHER_FILES = (
    (b"PK\x03\x04", "an Excel workbook or a zip archive", "in Excel, save it as CSV UTF-8; unpack an archive"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook", "in Excel, save it as CSV UTF-8"),
    (b"\x1f\x8b", "compressed (gzip)", "unpack it: gunzip FILE"),
    (b"PAR1", "a Parquet file", "name it .parquet"),
    (b"version https://git-lfs", "a Git LFS pointer, not the rows themselves", "fetch the rows: git lfs pull"),
)
_HEAD_BYTES = 64


@dataclass(frozen=True)
class TextFile:
    """A file's bytes and how they are decoded.

    Attributes:
        path: the file.
        data: its bytes, without a byte order mark at the beginning.
        skipped_bytes: length of that mark.
        encoding: a codec's name.
        notes: what was recognised, as half sentences for the user; lines adds to it.
    """

    path: Path
    data: bytes
    skipped_bytes: int
    encoding: str
    notes: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[tuple[int, str]]:
        """Yield the number, from 1, and the text of each line, with its line end.

        A character that was cut (an emoji's first bytes, a surrogate alone) becomes HALF.

        Raises:
            DataError: a byte does not fit the encoding: names line, byte and what to do.
        """
        number = 0
        for part in self._parts():
            if "\r" not in part:
                number += 1
                yield number, part
                continue
            for found in _LINE.finditer(part):
                number += 1
                yield number, found[0]

    def _parts(self) -> Iterator[str]:
        """Yield the text in parts that end with a line feed."""
        if self.encoding != "utf-8":
            for found in re.finditer(r"[^\n]*\n|[^\n]+", self._decoded()):
                yield found[0]
            return
        start = 0
        while start < len(self.data):
            end = self.data.find(b"\n", start) + 1 or len(self.data)
            try:
                text = self.data[start:end].decode("utf-8", _CUT_CHARACTER)
            except UnicodeDecodeError as error:
                raise self._error(start + error.start) from error
            yield text
            start = end

    def _decoded(self) -> str:
        errors = "surrogatepass" if self.encoding.startswith("utf-") else "strict"
        try:
            return self.data.decode(self.encoding, errors)
        except UnicodeDecodeError as error:
            raise self._error(error.start) from error
        except (LookupError, ValueError) as error:  # some codecs raise a bare UnicodeError
            raise ConfigError(
                f"[data] encoding is {self.encoding!r}, with which Python cannot read text",
                'use "auto", "utf-8", "utf-16", or "windows-1252"',
            ) from error

    def _error(self, at: int) -> DataError:
        before = self.data[:at].decode(self.encoding, "replace")
        line = 1 + len(re.findall(r"\r\n|\r|\n", before))
        byte = self.data[at]
        name = "UTF-8" if self.encoding == "utf-8" else self.encoding
        what = f"{self.path}: line {line} is not {name} at byte {self.skipped_bytes + at} of the file (0x{byte:02x})"
        hint = "save the file as UTF-8 (in Excel: CSV UTF-8), or give its encoding"
        if self.encoding == "utf-8":
            try:
                meaning = bytes([byte]).decode("windows-1252")
            except UnicodeDecodeError:
                meaning = ""
            if meaning:
                what += f"; in Windows-1252, as Excel saves CSV, it is {meaning}"
            hint = f"save the file as UTF-8 (in Excel: CSV UTF-8), or {setting([('encoding', 'windows-1252')])}"
        return DataError(what, hint, facts=f"line {line} is not {name}")


def open_text(path: Path, encoding: str = AUTO) -> TextFile:
    """Read a file and recognise its encoding.

    Args:
        path: the file.
        encoding: a codec's name; ``auto``: UTF-8, or UTF-16 where the first bytes show it.

    Raises:
        DataError: it cannot be read, or it is no text file.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error.strerror}",
            "check the path and its permissions",
            facts="its file cannot be read",
        ) from error
    for start, what, remedy in _OTHER_FILES:
        if data.startswith(start):
            raise DataError(
                f"{path} is {what}",
                f"{remedy}; Covey reads .jsonl, .json, .csv and .parquet",
                facts="its file is not text",
            )
    mark, found = next(((m, name) for m, name in _MARKS if data.startswith(m)), (b"", ""))
    if data.startswith(codecs.BOM_UTF8):
        mark, found = codecs.BOM_UTF8, "utf-8"
    if encoding != AUTO:
        chosen = _canonical(encoding)
        if found.startswith(chosen):
            chosen = found
        elif chosen in ("utf-16", "utf-32"):
            chosen += "-le"
        else:
            mark = mark if found == chosen else b""
        return TextFile(path, data[len(mark) :], len(mark), chosen)
    chosen = found or _without_mark(data) or "utf-8"
    notes = [] if chosen == "utf-8" else [f"the file is {chosen.upper().removesuffix('-LE').removesuffix('-BE')}"]
    return TextFile(path, data[len(mark) :], len(mark), chosen, notes)


def without_mark(number: int, line: str, notes: list[str]) -> str:
    """Return a line without byte order marks at its beginning; say so in ``notes``, once."""
    if not line.startswith(MARK):
        return line
    note = "byte order marks within the file are ignored, the first in line "
    if not any(said.startswith(note) for said in notes):
        notes.append(f"{note}{number}")
    return line.lstrip(MARK)


def _canonical(encoding: str) -> str:
    try:
        name = codecs.lookup(encoding).name
    except (LookupError, ValueError):
        return encoding  # decoding says so
    return {"utf-8-sig": "utf-8", "utf_8_sig": "utf-8"}.get(name, name)


def _without_mark(data: bytes) -> str | None:
    """Return UTF-16 where every second byte of a file's beginning is NUL, as Latin text has it; None: it is not."""
    head = data[:_HEAD_BYTES]
    if len(head) < 4:
        return None
    for zeros, others, name in ((head[1::2], head[::2], "utf-16-le"), (head[::2], head[1::2], "utf-16-be")):
        if zeros.count(0) > 0.8 * len(zeros) and others.count(0) == 0:
            return name
    return None


def _cut_character(error: UnicodeError) -> tuple[str, int]:
    """Replace the bytes of a character that was cut; bytes that fit no UTF-8 are another encoding and stay an error."""
    if isinstance(error, UnicodeDecodeError):
        data, start, end = error.object, error.start, error.end
        following = data[start + 1 : start + 3]
        if data[start] == 0xED and len(following) == 2 and following[0] >= 0xA0 and 0x80 <= following[1] < 0xC0:
            end = start + 3  # a surrogate, encoded alone
        if end - start >= 2:
            return HALF, end
    raise error


_CUT_CHARACTER = "covey_cut_character"
codecs.register_error(_CUT_CHARACTER, _cut_character)
