"""The border to files that others made: what is wrong with one before a library reads it, and a wall around that.

The libraries raise exceptions of many kinds on a damaged file (struct, numpy, zip, plain ``Exception``, panics of
Rust), and none of them knows where the file came from or how it is mended.
"""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING

from edge_runtime.errors import cause_of
from export.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_POINTERS = (b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/")
_POINTER_SIZE = re.compile(rb"^size (\d{1,18})\s*$", re.MULTILINE)
_POINTER_LIMIT_BYTES = 1024
_LIMIT = 300
AGAIN = "download the file again"


@contextlib.contextmanager
def reading(what: str, hint: str) -> Iterator[None]:
    """Turn every exception of a library that reads foreign files into an ExportError; see edge_runtime.errors.wall.

    Args:
        what: begins the message; names the file or folder.
        hint: what to do about it.

    Raises:
        ExportError: ``what``, and the library's reason in a few words.
    """
    try:
        yield
    except (ExportError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # the panics of libraries in Rust are no Exceptions
        raise ExportError(f"{what}: {_reason(error)}", hint) from error


def _reason(error: BaseException) -> str:
    """Return an exception in a few words on one line, with its kind where the text alone says little."""
    kind = type(error).__name__
    if kind == "UnpicklingError":
        return kind  # its text recommends to read the file without PyTorch's safeguard
    if isinstance(error, (OSError, ImportError, ValueError, RuntimeError, MemoryError)):
        return cause_of(error)
    return f"{kind}: {' '.join(str(error).split())}"[:_LIMIT]


def check_file(path: Path) -> int:
    """Check that a file is there, is readable, and is not a stand-in for the real one; return its size in bytes.

    Raises:
        ExportError: a link to nothing, no plain file, not readable, empty, a Git LFS pointer, or a web page.
    """
    if path.is_symlink() and not path.exists():
        raise ExportError(
            f"{path} is a link to {path.readlink()}, which is not there",
            "copy the files themselves (cp -L), or download the folder again",
        )
    try:
        with path.open("rb") as file:
            start = file.read(_POINTER_LIMIT_BYTES)
            size = path.stat().st_size
    except OSError as error:
        raise ExportError(f"cannot read {path}: {error.strerror}", "check the path and its permissions") from error
    if size == 0:
        raise ExportError(f"{path} is empty (0 bytes)", AGAIN)
    if start.startswith(_POINTERS):
        raise ExportError(_pointer_text(path, start, size), "run `git lfs pull` in the folder, or download it again")
    if start.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        raise ExportError(
            f"{path} is a web page, not the file itself ({size} bytes)", f"{AGAIN}, logged in if its site asks for it"
        )
    return size


def _pointer_text(path: Path, start: bytes, size: int) -> str:
    found = _POINTER_SIZE.search(start)
    real = f"which has {int(found[1])} bytes" if found else "whose size it does not say"
    return f"{path} is a Git LFS pointer of {size} bytes, not the file itself, {real}"


def check_known_files(folder: Path) -> None:
    """Check the small files of a model folder that transformers or Covey read, as far as they are there.

    A slow tokenizer's vocabulary is not read beside a tokenizer.json, and may then be anything.

    Raises:
        ExportError: one of them is not what its name says; see check_file.
    """
    patterns = _INDEXES if (folder / "tokenizer.json").exists() else (*_INDEXES, *_SLOW_VOCABULARIES)
    found = [path for pattern in patterns for path in folder.glob(pattern)]
    for path in sorted({*(folder / name for name in _NAMES), *found}):
        if path.is_symlink() or path.is_file():
            check_file(path)


_NAMES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "adapter_config.json",
    "covey_task.json",
    "1_Pooling/config.json",
)
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SLOW_VOCABULARIES = ("*.model", "*.tiktoken")
