"""Reads and writes ``manifest.json``: decoding, checking, encoding, and the hash that names the bundle.

Every reader of a manifest comes through here, so a manifest that has been read is consistent.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import msgspec

from edge_runtime.bundle.manifest import FORMAT_VERSION, MANIFEST_FILE, PLAIN_VERSION, Manifest
from edge_runtime.bundle.manifest_check import check_manifest
from edge_runtime.errors import BundleError, unreadable
from edge_runtime.files.versioned import VersionedFormat

if TYPE_CHECKING:
    from pathlib import Path

_FORMAT = VersionedFormat(
    "the manifest",
    FORMAT_VERSION,
    msgspec.json.decode,
    BundleError,
    hint="export the bundle again with: covey export",
    newer_hint="upgrade Covey on this machine",
    field="format_version",
    field_name="format version",
    oldest=PLAIN_VERSION,
)


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the bytes of manifest.json; what a bundle lacks (needs, base) is left out, as in manifests of before."""
    document = msgspec.to_builtins(manifest)
    for name in ("needs", "base"):
        if document[name] is None:
            del document[name]
    return msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n"


def bundle_sha256(manifest_bytes: bytes) -> str:
    """Return the bundle's name."""
    return hashlib.sha256(manifest_bytes).hexdigest()


def decode_manifest(data: bytes) -> Manifest:
    """Read and check a manifest.

    Raises:
        BundleError: not JSON, another format version, wrong types, unsafe or missing paths, a broken layout.
    """
    manifest: Manifest = _FORMAT.read(data, Manifest)
    check_manifest(manifest)
    return manifest


def read_manifest(bundle: Path) -> tuple[Manifest, str]:
    """Read the manifest of a bundle folder.

    Returns:
        The manifest, and the bundle's sha256.

    Raises:
        BundleError: there is no manifest (an interrupted export), or it is not valid.
        StorageError: descriptors or memory are short.
    """
    try:
        data = (bundle / MANIFEST_FILE).read_bytes()
    except FileNotFoundError as error:
        what = "no such folder" if not bundle.is_dir() else f"no {MANIFEST_FILE} in it (an interrupted export?)"
        raise BundleError(f"{bundle} is not a bundle: {what}", "make one with: covey export") from error
    except OSError as error:
        damaged = BundleError(f"cannot read {bundle / MANIFEST_FILE}: {error.strerror}", "check its permissions")
        raise unreadable(error, damaged) from error
    return decode_manifest(data), bundle_sha256(data)
