"""The finished adapter as a PEFT folder: what ``PeftModel.from_pretrained`` loads."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import save

from edge_runtime.errors import StorageError, storage_error
from edge_runtime.layout import adapter_sha256, views
from edge_runtime.store import sync_directory, write_atomically
from edge_runtime.tensor_file import map_tensors

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from edge_runtime.bundle import Bundle
    from edge_runtime.perturbation import FloatVector

JOB_FILE = "covey_job.json"


def write_peft_folder(bundle: Bundle, theta: FloatVector, folder: Path, summary: dict[str, Any]) -> None:
    """Write an adapter beside the configuration files that the bundle's own adapter has.

    The folder appears by a rename, so it is whole or not there.

    Args:
        bundle: the bundle that was trained.
        theta: the trainable vector, float32, (parameters,).
        folder: where to; must not exist.
        summary: what ``covey_job.json`` says about the job.

    Raises:
        StorageError: the folder exists, the disk is full, or it cannot be written.
    """
    if folder.exists():
        raise StorageError(f"{folder} exists", "move it away; results are never overwritten")
    partial = folder.with_name(folder.name + ".partial")
    adapter_file = bundle.file(bundle.manifest.adapter_file)
    # Frozen matrices are copied as they are, trained ones replaced.
    tensors = map_tensors(adapter_file) | views(theta, bundle.manifest.parameters)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for path in sorted(adapter_file.parent.iterdir()):
            if path.name != adapter_file.name:
                shutil.copyfile(path, partial / path.name)
        contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
        write_atomically(partial / adapter_file.name, save(contiguous, metadata={"format": "pt"}))
        described = {**summary, "bundle_sha256": bundle.sha256, "adapter_sha256": adapter_sha256(theta)}
        write_atomically(partial / JOB_FILE, json.dumps(described, indent=1).encode() + b"\n")
        partial.replace(folder)
        sync_directory(folder.parent)
    except OSError as error:
        raise storage_error(error, folder) from error
