"""Personal layers on disk: a safetensors file that names the bundle and job it belongs to."""

from __future__ import annotations

import hashlib
import logging
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from edge_runtime.backprop.importance import LayerStatistics, overlay
from edge_runtime.backprop.round import Personal
from edge_runtime.bundle.layers import layer_slices
from edge_runtime.errors import BundleError, unreadable, wall
from edge_runtime.files.aside import set_aside
from edge_runtime.files.atomic import write_atomically
from edge_runtime.files.hashing import file_sha256
from edge_runtime.files.tensor_file import encode_tensors, map_tensors, read_metadata
from edge_runtime.store.journal import Journal

if TYPE_CHECKING:
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.store.store import Store
    from edge_runtime.values import FloatVector

_LOG = logging.getLogger(__name__)


def no_personal(bundle: Bundle) -> Personal:
    """Return the personal layers at the beginning of a job: none."""
    return Personal({}, LayerStatistics.of(bundle.manifest.model.layers))


def save_personal(store: Store, bundle: Bundle, job: str, personal: Personal) -> str:
    """Write personal layers; return the file's hash. They count once the journal has it.

    Raises:
        StorageError: the disk is full or not writable.
    """
    slices = layer_slices(bundle.manifest).layers
    tensors = {
        p.name: personal.layers[p.layer][p.offset - slices[p.layer].start : p.stop - slices[p.layer].start].reshape(
            p.shape
        )
        for p in bundle.manifest.parameters
        if p.layer in personal.layers
    }
    statistics = msgspec.json.encode(personal.statistics).decode()
    data = encode_tensors(tensors, {"bundle_sha256": bundle.sha256, "job": job, "statistics": statistics})
    sha256 = hashlib.sha256(data).hexdigest()
    write_atomically(store.personal_file(sha256), data)
    return sha256


def load_personal(store: Store, sha256: str | None, bundle: Bundle, job: str) -> Personal:
    """Return the personal layers of a job; none if there is no file, or if it is another job's.

    Raises:
        BundleError: the file is missing, damaged, or of another bundle.
        StorageError: descriptors or memory are short.
    """
    if sha256 is None:
        return no_personal(bundle)
    path = store.personal_file(sha256)
    hint = f"remove {path.name} in {path.parent} to begin with the shared layers again"
    try:
        is_whole = path.is_file() and file_sha256(path) == sha256
    except OSError as error:
        unread = BundleError(f"the personal layers {path} cannot be read: {error.strerror}", hint)
        raise unreadable(error, unread) from error
    if not is_whole:
        raise BundleError(f"the personal layers {sha256[:12]} are missing or damaged", hint)
    with wall(lambda cause: BundleError(f"the personal layers {path} cannot be used: {cause}", hint)):
        return _personal_of(path, bundle, job, hint)


def _personal_of(path: Path, bundle: Bundle, job: str, hint: str) -> Personal:
    """Return the personal layers in a file whose hash is right."""
    metadata = read_metadata(path)
    if metadata.get("bundle_sha256") != bundle.sha256:
        raise BundleError(
            f"the personal layers belong to bundle {metadata.get('bundle_sha256', '?')[:12]}, "
            f"not to {bundle.sha256[:12]}",
            hint,
        )
    if metadata.get("job") != job:
        return no_personal(bundle)
    slices, tensors = layer_slices(bundle.manifest).layers, map_tensors(path)
    layers: dict[int, FloatVector] = {}
    for p in bundle.manifest.parameters:
        if p.name in tensors:
            if list(tensors[p.name].shape) != p.shape:
                raise BundleError(f"the personal layers hold {p.name} with another shape", hint)
            where = slices[p.layer]
            values = layers.setdefault(p.layer, np.zeros(where.stop - where.start, dtype=np.float32))
            values[p.offset - where.start : p.stop - where.start] = tensors[p.name].reshape(-1)
    with wall(lambda cause: BundleError(f"the personal layers have no statistics: {cause}", hint)):
        statistics = msgspec.json.decode(metadata["statistics"], type=LayerStatistics)
    return Personal(layers, statistics)


def journal_of_personal(store: Store) -> Journal:
    """Return a journal that names the newest personal layers on disk, with their job and bundle; else an empty one.

    Raises:
        StorageError: the state directory cannot be read.
    """
    for path in store.personal_files():
        try:
            with wall(BundleError):
                metadata = read_metadata(path)
                if file_sha256(path) != path.stem:
                    continue
                found = {"personal_sha256": path.stem, **{key: metadata[key] for key in ("job", "bundle_sha256")}}
                journal = msgspec.convert(found, Journal)
        except BundleError as error:
            _LOG.warning("the personal layers %s cannot be used: %s", path, error.what)
        else:
            _LOG.warning("the personal layers of job %s are kept", journal.job)
            return journal
    return Journal()


def personal_or_none(store: Store, sha256: str | None, bundle: Bundle, job: str) -> Personal:
    """Return the personal layers of a job; none if they are unusable: they are set aside, and the log says so."""
    try:
        return load_personal(store, sha256, bundle, job)
    except BundleError as error:
        _LOG.error("training begins with the shared layers: %s", error.what)
        path = store.personal_file(sha256 or "")
        if path.exists():
            set_aside(path, error.what)
        return no_personal(bundle)


def with_personal(theta: FloatVector, personal: Personal, bundle: Bundle) -> FloatVector:
    """Return an adapter with the personal layers in their places: the device's own model."""
    return overlay(theta, personal.layers, layer_slices(bundle.manifest).layers) if personal.layers else theta
