"""A server's state in one file: the ledger as it was at one moment, the adapters and deltas that it needs, and results.

::

    ledger.sqlite          a consistent copy, also while a server writes
    blobs/<sha256>         adapters and logs
    deltas/<sha256>        deltas of open rounds
    jobs/<job>/…           finished adapters
    covey_backup.json      size and hash of every file above; the last member, so a cut archive has none

Blobs in a bucket are copied from there; what is restored has them in folders.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import re
import shutil
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING

import msgspec

from edge_runtime import __version__
from edge_runtime.errors import StorageError, storage_error, wall
from edge_runtime.files.atomic import sync_directory, sync_file
from edge_runtime.files.hashing import file_sha256
from server.errors import JobError
from server.storage import queries
from server.storage.blob_address import BLOBS_FOLDER, DELTAS_FOLDER
from server.storage.bucket import bucket_of
from server.storage.ledger import Ledger
from server.storage.ledger_address import LEDGER_FILE, address_beside, shown
from server.storage.sqlite_database import copy_database

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MANIFEST = "covey_backup.json"
FORMAT_VERSION = 1
_FOLDERS = (BLOBS_FOLDER, DELTAS_FOLDER, "jobs")
_ATTEMPTS = 3
_CHUNK_BYTES = 1 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")


class BackupFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of a backup; ``path`` is relative to the state directory."""

    path: str
    size_bytes: int
    sha256: str


class BackupManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a backup holds; ``bundles`` are the paths of bundles that its jobs need and that are not in it."""

    format_version: int
    covey_version: str
    files: list[BackupFile]
    bundles: list[str]


@dataclass(frozen=True)
class Backup:
    """A backup that was written or restored.

    Attributes:
        files: number of files in it.
        size_bytes: size of these files.
        bundles: paths of bundles that its jobs need and that are not in it.
    """

    files: int
    size_bytes: int
    bundles: list[str]


class _MovedOnError(Exception):
    """The server has deleted a file that the copied ledger needs: it has gone on meanwhile."""


def create_backup(
    state_dir: Path, out: Path, progress: Callable[[str, int], None] = lambda _path, _size: None
) -> Backup:
    """Write a backup of a state directory; a server may be at work on it.

    Args:
        state_dir: the server's state directory.
        out: the archive (.tar); it appears by a rename when it is whole.
        progress: called with each file's path and size before it is copied.

    Raises:
        JobError: there is no ledger, or it is in PostgreSQL.
        StorageError: ``out`` exists or cannot be written, or a file cannot be read.
    """
    address = address_beside(state_dir / LEDGER_FILE)
    if address is not None:
        raise JobError(
            f"the ledger is in {shown(address)}, which covey backup does not copy",
            f"make a copy of it with pg_dump first, then one of {state_dir}; see docs/operating.md",
        )
    if out.exists():
        raise StorageError(f"{out} exists", "give another --out; backups are never overwritten")
    partial = out.with_name(out.name + ".partial")
    try:
        missing: str | None = None
        for attempt in range(_ATTEMPTS):
            try:
                with tempfile.TemporaryDirectory(prefix=".covey-backup-", dir=out.parent) as folder:
                    made = _write(state_dir, partial, Path(folder) / LEDGER_FILE, progress)
                break
            except _MovedOnError as error:
                if str(error) == missing:
                    raise StorageError(
                        f"{state_dir / missing} is missing, and a job needs it",
                        "restore it from an earlier backup; or, to go on without the job: covey job delete",
                    ) from error
                missing = str(error)
                if attempt + 1 == _ATTEMPTS:
                    raise StorageError(
                        f"the server goes on faster than its state can be copied ({error})",
                        "pause its jobs (covey job pause), and try again",
                    ) from error
        sync_file(partial)
        partial.replace(out)
        sync_directory(out.parent)
    except OSError as error:
        raise storage_error(error, out) from error
    finally:
        partial.unlink(missing_ok=True)
    return made


def _write(state_dir: Path, partial: Path, copy: Path, progress: Callable[[str, int], None]) -> Backup:
    """Write the archive: the ledger first, then what it needs."""
    copy_database(state_dir / LEDGER_FILE, copy)
    needed, bundles = _needs(copy)
    files: list[BackupFile] = []
    with tarfile.open(partial, "w", format=tarfile.PAX_FORMAT) as archive:
        files.append(_add(archive, copy, LEDGER_FILE, progress))
        for name, path in itertools.chain(sorted(_listed(state_dir)), _from_bucket(state_dir, copy.parent)):
            try:
                files.append(_add(archive, path, name, progress))
            except FileNotFoundError:
                continue  # the server has deleted it meanwhile; whether it is needed is looked at next
        missing = needed - {file.path for file in files}
        if missing:
            raise _MovedOnError(min(missing))
        manifest = msgspec.json.encode(BackupManifest(FORMAT_VERSION, __version__, files, bundles))
        member = tarfile.TarInfo(MANIFEST)
        member.size = len(manifest)
        archive.addfile(member, io.BytesIO(manifest))
    return Backup(len(files), sum(file.size_bytes for file in files), bundles)


def _needs(copy: Path) -> tuple[set[str], list[str]]:
    """Return the paths without which the jobs of a ledger cannot go on, and the paths of their bundles."""
    needed: set[str] = set()
    bundles: set[str] = set()
    with contextlib.closing(Ledger(copy, read_only=True)) as ledger:
        for name in queries.job_names(ledger):
            job = queries.find_job(ledger, name)
            if job is None or job.state == "finished":
                continue
            if job.bundle_path is not None:
                bundles.add(job.bundle_path)
            closed = queries.closed_rounds(ledger, name)
            needed |= {f"{BLOBS_FOLDER}/{done.result_sha256}" for done in closed[-2:]}  # the one before is for momentum
            needed |= {
                f"{BLOBS_FOLDER}/{moment}" for done in closed[-1:] if (moment := done.figures.moment_sha256) is not None
            }
            opened = queries.open_attempt(ledger, name)
            if opened is not None:
                deltas = queries.taken_deltas(ledger, name, opened.index, opened.attempt)
                needed |= {f"{DELTAS_FOLDER}/{delta.sha256}" for delta in deltas.values()}
    return needed, sorted(bundles)


def _listed(state_dir: Path) -> Iterator[tuple[str, Path]]:
    """Yield names in the backup, and paths, of the files of a state directory."""
    for folder in _FOLDERS:
        for path in (state_dir / folder).rglob("*"):
            name = path.relative_to(state_dir).as_posix()
            if path.is_file() and not path.is_symlink() and _is_of_a_backup(name):
                yield name, path


def _from_bucket(state_dir: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the same of blobs in a bucket; each is in the folder until the next one is asked for."""
    bucket = bucket_of(state_dir)
    if bucket is None:
        return
    for kind in (BLOBS_FOLDER, DELTAS_FOLDER):
        for sha256 in sorted(bucket.names(kind)):
            name, path = f"{kind}/{sha256}", folder / sha256
            if _is_of_a_backup(name) and bucket.fetch(name, path) == sha256:
                yield name, path
            path.unlink(missing_ok=True)


def _add(archive: tarfile.TarFile, path: Path, name: str, progress: Callable[[str, int], None]) -> BackupFile:
    with path.open("rb") as file:
        member = archive.gettarinfo(arcname=name, fileobj=file)
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        member.mode = 0o600
        progress(name, member.size)
        hashing = _Hashing(file)
        archive.addfile(member, hashing)  # it reads, and does nothing else
    return BackupFile(name, member.size, hashing.sha256.hexdigest())


class _Hashing:
    """A file that is hashed while it is read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.sha256 = file, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        """Read, as a file does."""
        data = self._file.read(size)
        self.sha256.update(data)
        return data


def _is_of_a_backup(name: str) -> bool:
    """Whether a path, relative to a state directory, is one that backups have."""
    path = PurePosixPath(name)
    if name == LEDGER_FILE:
        return True
    if path.is_absolute() or ".." in path.parts or str(path) != name or len(path.parts) < 2:
        return False
    if path.parts[0] in (BLOBS_FOLDER, DELTAS_FOLDER):
        return len(path.parts) == 2 and _SHA256.fullmatch(path.parts[1]) is not None
    return path.parts[0] == "jobs"


# -- restore -----------------------------------------------------------------------------------------------------------


def restore_backup(
    archive: Path, state_dir: Path, progress: Callable[[str, int], None] = lambda _path, _size: None
) -> Backup:
    """Restore a backup to a state directory that is empty or does not exist; it appears by a rename when it is whole.

    Args:
        archive: the backup.
        state_dir: the state directory to make.
        progress: called with each file's path and size before it is unpacked.

    Raises:
        JobError: the state directory is in use.
        StorageError: the archive is cut, damaged, or no backup; or the disk is full. Nothing is left behind.
    """
    if state_dir.exists() and any(state_dir.iterdir()):
        raise JobError(f"{state_dir} is not empty", "give --state-dir a new folder, or move that one away")
    partial = state_dir.with_name(state_dir.name + ".restoring")
    try:
        if partial.exists():
            shutil.rmtree(partial)  # of a restoration that was cut off
        partial.mkdir(parents=True, mode=0o700)
        try:
            with wall(lambda cause: _damaged(archive, cause)), tarfile.open(archive, "r:") as opened:
                manifest = _unpack(archive, opened, partial, progress)
            with contextlib.closing(Ledger(partial / LEDGER_FILE, read_only=True)):
                pass  # it can be opened
            if state_dir.exists():
                state_dir.rmdir()
            partial.rename(state_dir)
            sync_directory(state_dir.parent)
        finally:
            if partial.exists():
                shutil.rmtree(partial)
    except OSError as error:
        raise storage_error(error, state_dir) from error
    return Backup(len(manifest.files), sum(file.size_bytes for file in manifest.files), manifest.bundles)


def _unpack(
    archive: Path, opened: tarfile.TarFile, folder: Path, progress: Callable[[str, int], None]
) -> BackupManifest:
    """Unpack an archive's files, and check them against its manifest."""
    found: dict[str, BackupFile] = {}
    manifest: BackupManifest | None = None
    for member in opened:
        source = opened.extractfile(member) if member.isreg() else None
        if source is None or manifest is not None:
            raise _damaged(archive, f"{member.name!r} does not belong there")
        if member.name == MANIFEST:
            manifest = msgspec.json.decode(source.read(), type=BackupManifest)
            continue
        if not _is_of_a_backup(member.name) or member.name in found:
            raise _damaged(archive, f"{member.name!r} does not belong there")
        progress(member.name, member.size)
        path = folder / member.name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                _copy(source, file)
            sync_file(path)
            found[member.name] = BackupFile(member.name, path.stat().st_size, file_sha256(path))
        except OSError as error:
            raise storage_error(error, path) from error
    if manifest is None:
        raise _damaged(archive, "it is cut off: its list of files is missing")
    if manifest.format_version != FORMAT_VERSION:
        raise StorageError(
            f"{archive} has format {manifest.format_version}, this Covey knows {FORMAT_VERSION}",
            f"restore it with Covey {manifest.covey_version}",
        )
    listed = {file.path: file for file in manifest.files}
    wrong = sorted(name for name in found.keys() | listed.keys() if found.get(name) != listed.get(name))
    if wrong or LEDGER_FILE not in found:
        raise _damaged(archive, f"{', '.join(wrong[:3]) or LEDGER_FILE} is not as it was written")
    return manifest


def _copy(source: IO[bytes], target: IO[bytes]) -> None:
    while data := source.read(_CHUNK_BYTES):
        target.write(data)


def _damaged(archive: Path, cause: str) -> StorageError:
    return StorageError(
        f"{archive} is damaged or no backup of Covey: {cause}", "take another backup; nothing was restored"
    )
