"""Writes the finished adapter as a PEFT folder, or the finished model as a Hugging Face folder."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import save_file

from edge_runtime.bundle.adapter import adapter_sha256
from edge_runtime.bundle.layout import views
from edge_runtime.errors import StorageError, storage_error
from edge_runtime.files.atomic import sync_directory, sync_file, write_atomically
from edge_runtime.files.tensor_file import map_tensors

if TYPE_CHECKING:
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
