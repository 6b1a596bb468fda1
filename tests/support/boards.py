"""Boards from public dumps (tests/edge/boards): lays out their files, and counts what is read and started."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime.host.sysfs import Sysfs

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER = Path(__file__).parents[1] / "edge" / "boards"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))


@dataclass
class CountingSysfs(Sysfs):
    """Reads as a device does, and keeps the paths that were read, found or not, and the patterns looked for."""

    root: Path
    reads: list[str] = field(default_factory=list)
    globs: list[str] = field(default_factory=list)

    def read(self, path: Path) -> str | None:
        self.reads.append(str(path.relative_to(self.root)))
        return super().read(path)

    def glob(self, pattern: str) -> list[Path]:
        self.globs.append(pattern)
        return super().glob(pattern)


@dataclass
class DumpedBoard:
    """A board's files, laid out, and its commands; ``started`` are the command lines that were asked for."""

    files: CountingSysfs
    commands: dict[str, str]
    started: list[str] = field(default_factory=list)

    def run(self, command: list[str]) -> str | None:
        self.started.append(" ".join(command))
        return self.commands.get(" ".join(command))

    def forget(self) -> None:
        """Begin to count anew."""
        self.files.reads.clear()
        self.files.globs.clear()
        self.started.clear()


def read_dump(name: str) -> dict[str, Any]:
    """Return a board's file."""
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return found


def lay_out(name: str, root: Path) -> Iterator[DumpedBoard]:
    """Yield a board below a folder; files whose reading fails do fail while it is in use."""
    dump, writers = read_dump(name), []
    for path, text in dump["files"].items():
        place = root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(text, str):
            place.write_text(text, encoding="utf-8")
        elif text["error"] == "EAGAIN":  # a pipe that has a writer and no bytes answers so
            os.mkfifo(place)
            writers.append(os.open(place, os.O_RDWR | os.O_NONBLOCK))
        else:  # opening a link to itself fails, also for root
            place.symlink_to(place.name)
    try:
        yield DumpedBoard(CountingSysfs(root), dump["commands"])
    finally:
        for writer in writers:
            os.close(writer)
