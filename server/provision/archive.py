"""What is sent to a board: one tar file with Covey's files, of which those that are there already are left out."""

from __future__ import annotations

import hashlib
import io
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.errors import ConfigError
from server.flash.device_wheel import make_device_wheel
from server.flash.environment import Environment, make_environment
from server.flash.payload import ARCHIVE, WANTS, Payload, board_files
from server.provision.facts import CHECKED_FILES
from server.provision.scripts import COMPLETE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from server.flash.card import RootFile
    from server.flash.environment import Sources
    from server.provision.facts import Facts
    from server.provision.plan import Plan, Target

_NOT_MADE = Path("/nonexistent/env.tar")


@dataclass(frozen=True)
class Recipe:
    """What a board's files are made of.

    Attributes:
        device: the name of the device.
        target: machine and Python.
        sources: where packages come from.
        environment_id: see environment_id.
        rows: the private rows here; None: none are sent.
        rows_name: the name of their file on the board.
        memory_max: what the service may use of the board's memory.
    """

    device: str
    target: Target
    sources: Sources
    environment_id: str
    rows: Path | None
    rows_name: str
    memory_max: str

    def files(self, environment: Environment, token: str | None) -> list[RootFile]:
        """Return all files of the board; links of services are left to systemctl."""
        payload = Payload(self.device, token, environment, self.rows, self.rows_name, self.memory_max)
        words = {"first_boot": "ssh", "environment": self.environment_id}
        made = board_files(self.target.python, payload, words)
        return [file for file in made if not file.path.startswith(f"{WANTS}/")]

    def checked_files(self) -> dict[str, str]:
        """Return the SHA-256 of the files by which a board is compared with what it is to be, by path."""
        empty = Environment(_NOT_MADE, (), 0, has_kernel=False, short_aligned=())
        return {
            file.path: hashlib.sha256(file.data).hexdigest()
            for file in self.files(empty, None)
            if file.path in CHECKED_FILES and isinstance(file.data, bytes)
        }


def environment_id(target: Target, sources: Sources) -> str:
    """Return a hash that changes with Covey's device side, the board's Python and machine, and the packages' source.

    Raises:
        StorageError: the wheel of the device side cannot be made.
    """
    digest = hashlib.sha256(f"{target.machine} {target.python} {sources.index_url}\n".encode())
    with tempfile.TemporaryDirectory() as folder:
        wheel, _ = make_device_wheel(Path(folder), target.machine)
        digest.update(wheel.read_bytes())
    if sources.wheels is not None:
        if not sources.wheels.is_dir():
            raise ConfigError(f"--wheels {sources.wheels} is no folder", "give a folder of wheels")
        digest.update("\n".join(sorted(path.name for path in sources.wheels.iterdir())).encode())
    return digest.hexdigest()


def make_environment_for(recipe: Recipe, plan: Plan, facts: Facts, work: Path) -> Environment:
    """Return the board's environment: made anew if the plan says so, else as the board's own note has it.

    Raises:
        NetworkError, StorageError: see server.flash.environment.make_environment.
    """
    if plan.does("environment"):
        return make_environment(recipe.target.python, recipe.sources, work / "env.tar", recipe.target.machine)
    packages = tuple(str(name) for name in facts.note.get("packages", ()))
    return Environment(_NOT_MADE, packages, 0, has_kernel=False, short_aligned=())


def sent_files(plan: Plan, files: Sequence[RootFile]) -> list[RootFile]:
    """Return which of the files a plan sends."""
    left_out = set() if plan.does("environment") else {ARCHIVE}
    if not plan.does("rows"):
        left_out |= {file.path for file in files if "/data/" in file.path}
    return [file for file in files if file.path not in left_out]


def write_archive(files: Sequence[RootFile], path: Path) -> None:
    """Write files as a tar file whose last entry says that it is whole.

    Raises:
        OSError: it cannot be written, or a file cannot be read.
    """
    with tarfile.open(path, "w") as tar:
        for file in files:
            if file.data is None:
                continue
            entry = tarfile.TarInfo(file.path.lstrip("/"))
            entry.mode = file.mode
            if isinstance(file.data, bytes):
                entry.size = len(file.data)
                tar.addfile(entry, io.BytesIO(file.data))
                continue
            entry.size = file.data.stat().st_size
            with file.data.open("rb") as source:
                tar.addfile(entry, source)
        tar.addfile(tarfile.TarInfo(COMPLETE))


def rows_name(facts: Facts, rows: Path | None) -> str:
    """Return the name of the rows' file on a board: as they are given, else as it is there already."""
    if rows is not None:
        return f"rows{rows.suffix}"
    return Path(next(iter(sorted(facts.rows)), "rows.jsonl")).name


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
