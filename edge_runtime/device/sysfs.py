"""Reads small files below /proc and /sys; what cannot be read or parsed is None."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Sysfs:
    """Reads files below a folder that holds ``proc`` and ``sys``.

    Args:
        root: ``/``; tests pass another one.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def glob(self, pattern: str) -> list[Path]:
        """Return the paths that match, sorted; none where folders cannot be read."""
        try:
            return sorted(self.root.glob(pattern))
        except OSError:
            return []

    def text(self, path: str) -> str | None:
        """Return the text of a file; see read_text."""
        return read_text(self.root / path)

    def texts(self, pattern: str) -> list[str]:
        """Return the texts of the files that match and can be read."""
        return [text for path in self.glob(pattern) if (text := read_text(path)) is not None]

    def numbers(self, pattern: str) -> list[float]:
        """Return the numbers in the files that match and hold one."""
        return [value for path in self.glob(pattern) if (value := read_number(path)) is not None]

    def hwmon(self, name: str) -> Iterator[Path]:
        """Return the folders of the hardware monitors of a name."""
        return (folder for folder in self.glob("sys/class/hwmon/hwmon*") if read_text(folder / "name") == name)


def read_text(path: Path) -> str | None:
    """Return a file's text without trailing zero bytes, newlines and spaces; None: not readable."""
    try:
        return path.read_bytes().decode(errors="replace").strip("\0\n ") or None
    except OSError:
        return None


def read_number(path: Path) -> float | None:
    """Return the number that a file holds; None: it holds none."""
    try:
        return float(read_text(path) or "")
    except ValueError:
        return None


def read_hex(text: str) -> int | None:
    """Return a hexadecimal number, with or without 0x."""
    try:
        return int(text, 16)
    except ValueError:
        return None


def read_field(text: str | None, name: str) -> str | None:
    """Return what stands after ``name:`` in the first line that begins with it."""
    found = re.search(rf"^{re.escape(name)}\s*:\s*(.*?)\s*$", text or "", re.MULTILINE)
    return found.group(1) if found else None


def read_kilobytes(text: str | None, name: str) -> int | None:
    """Return the bytes of a line such as ``MemTotal:  8245696 kB``."""
    found = re.fullmatch(r"(\d+) kB", read_field(text, name) or "")
    return int(found.group(1)) * 1024 if found else None
