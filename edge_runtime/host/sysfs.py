"""Reads small files below /proc and /sys; what cannot be read or parsed is None."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_CHUNK_BYTES = 65536


class Sysfs:
    """Reads files below a folder that holds ``proc`` and ``sys``. Every file is read through its ``read``.

    Args:
        root: ``/``; tests pass another one.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root

    def read(self, path: Path) -> str | None:
        """Return the text of a file; see read_text."""
        return read_text(path)

    def glob(self, pattern: str) -> list[Path]:
        """Return the paths that match, sorted; none where folders cannot be read."""
        try:
            return sorted(self.root.glob(pattern))
        except OSError:
            return []

    def text(self, path: str) -> str | None:
        """Return the text of a file below the root; see read_text."""
        return self.read(self.root / path)

    def texts(self, pattern: str) -> Iterator[str]:
        """Yield the texts of the files that match and can be read; each is read when it is asked for."""
        return (text for path in self.glob(pattern) if (text := self.read(path)) is not None)

    def number(self, path: Path) -> float | None:
        """Return the number that a file holds; None: it holds none."""
        return number_in(self.read(path))

    def numbers(self, pattern: str) -> list[float]:
        """Return the numbers in the files that match and hold one."""
        return [value for path in self.glob(pattern) if (value := self.number(path)) is not None]

    def hwmon(self, name: str) -> Iterator[Path]:
        """Return the folders of the hardware monitors of a name."""
        return (folder for folder in self.glob("sys/class/hwmon/hwmon*") if self.read(folder / "name") == name)


def read_text(path: Path) -> str | None:
    """Return a file's text without trailing zero bytes, newlines and spaces; None: not readable.

    A sensor whose rail is switched off answers EAGAIN or EINVAL (thermal zones of a Jetson Orin Nano): not readable.
    It never waits for a file that has nothing to say yet.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):
        return None
    try:
        data = b""
        while chunk := os.read(file, _CHUNK_BYTES):
            data += chunk
    except OSError:  # BlockingIOError among them: a file object would return None for it
        return None
    finally:
        os.close(file)
    return data.decode(errors="replace").strip("\0\n ") or None


def read_number(path: Path) -> float | None:
    """Return the number that a file holds; None: it holds none."""
    return number_in(read_text(path))


def number_in(text: str | None) -> float | None:
    """Return the number that a text is; None: it is none."""
    try:
        return float(text or "")
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
