"""An exported bundle on disk: opens it, and checks every byte of it against its manifest."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edge_runtime.bundle.adapter import adapter_sha256
from edge_runtime.bundle.decode import DECODE_FILE, Decode, find_decode
from edge_runtime.bundle.layout import total_size, views
from edge_runtime.bundle.manifest import MANIFEST_FILE
from edge_runtime.bundle.manifest_file import read_manifest
from edge_runtime.errors import BundleError, unreadable
from edge_runtime.files.hashing import file_sha256
from edge_runtime.files.tensor_file import map_flat, map_tensors

if TYPE_CHECKING:
    from pathlib import Path

    from edge_runtime.bundle.manifest import FileEntry, Manifest, Runtime
    from edge_runtime.values import FloatVector


@dataclass(frozen=True)
class Bundle:
    """A bundle folder with its manifest read."""

    path: Path
    manifest: Manifest
    sha256: str

    def file(self, name: str) -> Path:
        """Return the path of one of its files."""
        return self.path / name

    @functools.cached_property
    def initial_sha256(self) -> str:
        """Hash of the initial adapter; computed once, it may be as large as the model."""
        return adapter_sha256(self.initial_adapter())

    def initial_adapter(self) -> FloatVector:
        """Return the trainable vector that the bundle starts from, float32, (parameters,); mapped in full mode.

        Raises:
            BundleError: a parameter of the layout is not in the adapter file, or has another shape.
        """
        parameters = self.manifest.parameters
        if self.manifest.train == "full":
            return map_flat(self.file(self.manifest.adapter_file), [p.name for p in parameters], total_size(parameters))
        tensors = map_tensors(self.file(self.manifest.adapter_file))
        flat: FloatVector = np.empty(parameters[-1].stop, dtype=np.float32)
        for name, view in views(flat, parameters).items():
            if name not in tensors or tensors[name].shape != view.shape:
                raise BundleError(
                    f"{self.manifest.adapter_file} does not hold {name} with shape {view.shape}",
                    "export the bundle again with: covey export",
                )
            view[...] = tensors[name]
        return flat


def open_bundle(path: Path) -> Bundle:
    """Open a bundle without reading its files; see verify_files.

    Raises:
        BundleError: no manifest, or one that is not valid.
    """
    manifest, sha256 = read_manifest(path)
    return Bundle(path, manifest, sha256)


def open_named(path: Path, sha256: str) -> Bundle:
    """Open the bundle of a name: its manifest has this hash.

    Raises:
        BundleError: see open_bundle; or the manifest is another bundle's.
    """
    bundle = open_bundle(path)
    if bundle.sha256 != sha256:
        raise BundleError(
            f"the manifest in {path} is not that of bundle {sha256[:12]}: its hash differs", "fetch the bundle again"
        )
    return bundle


def check_file(path: Path, entry: FileEntry) -> None:
    """Check one file against its entry in the manifest.

    Raises:
        BundleError: the file is missing, not a plain file, cannot be read, or altered.
        StorageError: descriptors or memory are short; the file may be whole.
    """
    if path.is_symlink() or not path.is_file():
        raise BundleError(f"the bundle's file {entry.path} is missing", "fetch or export the bundle again")
    try:
        is_whole = path.stat().st_size == entry.size_bytes and file_sha256(path) == entry.sha256
    except OSError as error:
        damaged = BundleError(
            f"the bundle's file {entry.path} cannot be read: {error.strerror}",
            "check the disk, then fetch or export the bundle again",
        )
        raise unreadable(error, damaged) from error
    if not is_whole:
        raise BundleError(
            f"the bundle's file {entry.path} was altered: its size or hash is not the manifest's",
            "fetch or export the bundle again",
        )


def verify_loaded(bundle: Bundle, runtime: Runtime) -> None:
    """Check the files that a prediction loads: tokenizer, weights, adapter, the runtime's graphs of the whole model.

    Training graphs, which are the larger part of a bundle, are not read.

    Raises:
        BundleError: names the first file that is missing or altered, or the bundle has no graph for the runtime.
    """
    manifest = bundle.manifest
    graph = manifest.graph("predict", runtime=runtime)
    for name in dict.fromkeys((manifest.tokenizer_file, graph.file, manifest.weights_file, manifest.adapter_file)):
        check_file(bundle.file(name), manifest.file(name))
    for entry in manifest.files:
        if entry.path == DECODE_FILE:
            check_file(bundle.file(DECODE_FILE), entry)
    decode = find_decode(bundle.path, manifest, runtime)
    if isinstance(decode, Decode):
        check_file(bundle.file(decode.graph.file), manifest.file(decode.graph.file))


def verify_files(bundle: Bundle) -> None:
    """Check that the folder holds exactly the manifest's files, each with its hash.

    Raises:
        BundleError: names the first file that is missing, altered or extra.
    """
    for entry in bundle.manifest.files:
        check_file(bundle.file(entry.path), entry)
    listed = {entry.path for entry in bundle.manifest.files} | {MANIFEST_FILE}
    for path in sorted(bundle.path.rglob("*")):
        name = path.relative_to(bundle.path).as_posix()
        if name not in listed and not path.is_dir():
            raise BundleError(
                f"{name} is in the bundle's folder but not in its manifest", "remove it, or export the bundle again"
            )
