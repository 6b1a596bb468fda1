"""Writes the finished adapter as a PEFT folder, or the finished model as a Hugging Face folder."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from safetensors.numpy import save_file

from edge_runtime.bundle.adapter import adapter_sha256
from edge_runtime.bundle.layout import NAMES_FILE, views
from edge_runtime.errors import BundleError, StorageError, storage_error, wall
from edge_runtime.files.atomic import sync_directory, sync_file, write_atomically
from edge_runtime.files.tensor_file import map_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Any

    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.values import FloatVector, Tensor

FULL_FILE = "model.safetensors"
JOB_FILE = "covey_job.json"


def write_finished(bundle: Bundle, theta: FloatVector, folder: Path, summary: dict[str, Any]) -> None:
    """Write an adapter, or a full model, with the configuration files that the bundle has for it.

    The folder appears by a rename, so it is complete or does not exist.

    Args:
        bundle: the bundle that was trained.
        theta: the trainable vector, float32, (parameters,).
        folder: the folder to create.
        summary: the content of ``covey_job.json``.

    Raises:
        BundleError: the bundle's file of names is damaged.
        StorageError: the folder exists or cannot be written, or the disk is full.
    """
    if folder.exists():
        raise StorageError(f"{folder} exists", "move it away; results are never overwritten")
    partial = folder.with_name(folder.name + ".partial")
    manifest = bundle.manifest
    tensors: dict[str, Tensor] = dict(views(theta, manifest.parameters))
    name = FULL_FILE
    beside = [bundle.path / "adapter"]
    if manifest.train == "lora":
        # Frozen matrices are copied unchanged, trained ones are replaced.
        tensors = map_tensors(bundle.file(manifest.adapter_file)) | tensors
        name = bundle.file(manifest.adapter_file).name
    else:
        tensors = _named_for_hugging_face(tensors, bundle)
        beside.append(bundle.file(manifest.tokenizer_file).parent)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for path in (path for part in beside for path in sorted(part.iterdir())):
            if path.name != name:
                shutil.copyfile(path, partial / path.name)
        contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
        save_file(contiguous, partial / name, metadata={"format": "pt"})
        sync_file(partial / name)
        described = {**summary, "bundle_sha256": bundle.sha256, "adapter_sha256": adapter_sha256(theta)}
        write_atomically(partial / JOB_FILE, json.dumps(described, indent=1).encode() + b"\n")
        partial.replace(folder)
        sync_directory(folder.parent)
    except OSError as error:
        raise storage_error(error, folder) from error


def _named_for_hugging_face(tensors: Mapping[str, Tensor], bundle: Bundle) -> dict[str, Tensor]:
    """Return a full model's tensors by the names that Hugging Face's classes load; a shared one has several."""
    path = bundle.path / NAMES_FILE
    names: dict[str, list[str]] = {}
    if path.is_file():
        with wall(lambda cause: BundleError(f"{path} is not readable: {cause}", "export the bundle again")):
            names = msgspec.json.decode(path.read_bytes(), type=dict[str, list[str]])
    return {other: tensor for name, tensor in tensors.items() for other in names.get(name, [name])}
