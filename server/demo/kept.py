"""What an earlier demo left and this one goes on with: results of slow steps, for the same inputs and code."""

from __future__ import annotations

import hashlib
import json
import shutil
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

import edge_runtime
import server
from edge_runtime.bundle.folder import open_bundle, verify_files
from edge_runtime.errors import CoveyError, storage_error
from edge_runtime.files.aside import remove
from edge_runtime.files.atomic import write_atomically
from edge_runtime.files.hashing import file_sha256

if TYPE_CHECKING:
    from collections.abc import Iterable

KEPT = ("bundle", "bundle.made.json", "probe.made.json")
"""What is kept of an earlier demo's folder."""
_LIBRARIES = ("torch", "transformers", "peft", "numpy", "onnx", "onnxscript", "onnxruntime", "executorch")
_SOURCES = ("*.py", "*.cpp", "*.h", "*.c")


class Made(msgspec.Struct, frozen=True):
    """How a step's result was made.

    Attributes:
        key: hash of the step's command, its inputs and the code.
        result: what the command printed.
    """

    key: str
    result: dict[str, Any]


def empty_but_kept(workdir: Path) -> None:
    """Make the demo's folder, and remove everything in it but what may be kept.

    Raises:
        StorageError: it cannot be made, or something in it not be removed.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        for path in workdir.iterdir():
            if path.name not in KEPT:
                remove(path)
    except OSError as error:
        raise storage_error(error, workdir) from error


def key_of(command: Iterable[str], inputs: Iterable[Path], parts: Iterable[str]) -> str:
    """Return the key of a step: it changes with the command, the inputs' content, the code and the libraries.

    Args:
        command: the words that do not name the inputs.
        inputs: the files that the step reads.
        parts: what names the other inputs, such as a package's hash.
    """
    described = {
        "command": list(command),
        "inputs": [file_sha256(path) for path in inputs],
        "parts": list(parts),
        "code": code_sha256([Path(edge_runtime.__path__[0]), Path(server.__path__[0]).parent / "export"]),
        "libraries": {name: _version(name) for name in _LIBRARIES},
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def code_sha256(folders: Iterable[Path]) -> str:
    """Return a hash of all sources below folders; a folder that is not there has none."""
    digest = hashlib.sha256()
    for folder in folders:
        paths = {path for pattern in _SOURCES for path in folder.rglob(pattern)}
        for path in sorted(paths):
            digest.update(f"{path.relative_to(folder)}\0{file_sha256(path)}\0".encode())
    return digest.hexdigest()


def remember(path: Path, key: str, result: dict[str, Any]) -> None:
    """Write down how a step's result was made; call it when the result is complete.

    Raises:
        StorageError: it cannot be written.
    """
    write_atomically(path, msgspec.json.encode(Made(key, result)))


def recall(path: Path, key: str) -> dict[str, Any] | None:
    """Return what the same step printed before; None: it was not made, or otherwise."""
    try:
        made = msgspec.json.decode(path.read_bytes(), type=Made)
    except Exception:  # noqa: BLE001 a note that cannot be read is none: the step is done again
        return None
    return made.result if made.key == key else None


def recall_bundle(bundle: Path, note: Path, key: str) -> bool:
    """Whether an earlier demo's bundle is the one that the same export would make now, and whole; else it is removed.

    Raises:
        StorageError: it cannot be removed.
    """
    result = recall(note, key)
    try:
        if result is not None:
            found = open_bundle(bundle)
            verify_files(found)
            if found.sha256 == result["bundle_sha256"]:
                return True
    except CoveyError:
        pass
    try:
        note.unlink(missing_ok=True)
        shutil.rmtree(bundle, ignore_errors=True)
        remove(bundle)
    except OSError as error:
        raise storage_error(error, bundle) from error
    return False


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
