"""Where a state directory's blobs are: in folders there, or in a bucket at an address that a file there names."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from edge_runtime.errors import ConfigError, StorageError, storage_error
from edge_runtime.files.atomic import write_atomically

if TYPE_CHECKING:
    from pathlib import Path

BLOBS_FOLDER, DELTAS_FOLDER = "blobs", "deltas"
"""What the server serves, and what devices have sent."""
COPIES_FOLDER = "copies"
"""Of a state directory: what this server has fetched from its bucket, or written there."""
NOTE_FILE = "blobs.url"
_ADDRESS = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?P<prefix>(/[A-Za-z0-9_=.-]+)*)/?")


def bucket_beside(state_dir: Path) -> str | None:
    """Return the address of the bucket that has a state directory's blobs; None: they are in folders there.

    Raises:
        StorageError: the file with the address cannot be read, or has none.
    """
    note = state_dir / NOTE_FILE
    try:
        address = note.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise storage_error(error, note) from error
    except UnicodeDecodeError:
        address = ""
    if _ADDRESS.fullmatch(address) is None:
        raise StorageError(f"{note} has no address of a bucket", "write it there: s3://bucket/prefix")
    return address


def bucket_and_prefix(address: str) -> tuple[str, str]:
    """Return the bucket's name and the prefix, which may be empty, of an address.

    Raises:
        ConfigError: it is no such address.
    """
    found = _ADDRESS.fullmatch(address)
    if found is None or {".", ".."} & set(address.split("/")):
        raise ConfigError(
            f"--blobs {_shown(address)} is no address of a bucket",
            "write s3://bucket/prefix; keys, region and endpoint come from AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, "
            "AWS_REGION and AWS_ENDPOINT_URL",
        )
    return found["bucket"], found["prefix"].strip("/")


def keep_bucket(state_dir: Path, address: str) -> bool:
    """Note in a state directory that its blobs are in a bucket: the server finds them there from then on.

    Args:
        state_dir: the server's state directory.
        address: ``s3://bucket/prefix``.

    Returns:
        Whether it is noted now; False: it was before.

    Raises:
        ConfigError: it is no such address, or the state directory has its blobs elsewhere already.
        StorageError: the file cannot be written.
    """
    bucket, prefix = bucket_and_prefix(address)
    address = f"s3://{bucket}/{prefix}".rstrip("/")
    there = bucket_beside(state_dir)
    if there is not None and there != address:
        raise ConfigError(
            f"the blobs of {state_dir} are in {there}, not in {address}",
            f"leave --blobs out; or give another --state-dir; or change {state_dir / NOTE_FILE}",
        )
    if there is not None:
        return False
    if own := [path for name in (BLOBS_FOLDER, DELTAS_FOLDER) for path in (state_dir / name).glob("*")]:
        raise ConfigError(
            f"{state_dir} has blobs of its own, {own[0].relative_to(state_dir)}",
            f"copy {BLOBS_FOLDER} and {DELTAS_FOLDER} below {address}, and move them away here; "
            "or give another --state-dir",
        )
    write_atomically(state_dir / NOTE_FILE, f"{address}\n".encode())
    return True


def forget_bucket(state_dir: Path) -> None:
    """Remove the note of keep_bucket."""
    (state_dir / NOTE_FILE).unlink(missing_ok=True)


def _shown(address: str) -> str:
    """Return what is no address as a message may show it: without what may be a key."""
    return f"{address.partition('://')[0]}://…" if "@" in address or "?" in address else address
