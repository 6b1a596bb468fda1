"""Writes a bundle's weights in ExecuTorch's own file format (FlatTensor, ``.ptd``), for apps that read it.

The tensors have the names of the manifest's inputs. The file is not part of the bundle: devices fetch every file of a
bundle, and they read ``weights.safetensors``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from executorch.exir._serialize.data_serializer import DataEntry, DataPayload
from executorch.exir.tensor_layout import TensorLayout
from executorch.extension.flat_tensor.serialize.serialize import FlatTensorSerializer

from edge_runtime.errors import storage_error
from edge_runtime.files.tensor_file import map_tensors

if TYPE_CHECKING:
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle

_ALIGNMENT = 16


def write_flat_tensors(bundle: Bundle, path: Path) -> int:
    """Write base weights and the initial adapter of a bundle as one FlatTensor file; return its size in bytes.

    Args:
        bundle: the bundle.
        path: the file; an existing one is replaced.

    Raises:
        StorageError: disk full or not writable.
    """
    manifest = bundle.manifest
    tensors = map_tensors(bundle.file(manifest.weights_file)) | map_tensors(bundle.file(manifest.adapter_file))
    buffers, entries = [], {}
    for index, (name, tensor) in enumerate(tensors.items()):
        # On the meta device without data: a layout is the element type and the sizes.
        described = torch.empty(tensor.shape, dtype=getattr(torch, str(tensor.dtype)), device="meta")
        entries[name] = DataEntry(index, _ALIGNMENT, TensorLayout.from_tensor(described))
        buffers.append(tensor.tobytes())
    made = FlatTensorSerializer().serialize(DataPayload(buffers, entries))
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            made.write_to_file(file)
        partial.replace(path)
        return path.stat().st_size
    except OSError as error:
        raise storage_error(error, path) from error
    finally:
        partial.unlink(missing_ok=True)
