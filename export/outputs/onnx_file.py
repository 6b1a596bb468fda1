"""The finished model as one ONNX graph with its weights in it: (input_ids, attention_mask) → logits."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
import torch

from export.errors import ExportError, compiling
from export.graphs.onnx_pieces import OPSET
from export.model.rebuild import FILE, read_rebuild
from export.outputs.folder import new_folder
from export.outputs.merged import load_merged
from export.outputs.random_rows import random_rows
from export.quiet import quiet
from export.source.folder import look_at
from export.source.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from export.model.tasks import TaskModel

ONNX_FILE = "model.onnx"
TOLERANCE = 1e-4
"""Largest difference from PyTorch's logits; relative where these are above 1."""
_LARGEST_BYTES = 1_500_000_000
"""A graph with more weights has them in a file beside it: protobuf ends at 2 GB."""
_SHAPES = ((1, 2), (2, 7), (3, 12))
"""Rows and tokens with which the graph is compared with PyTorch; it was traced with others."""


def write_onnx(adapter: Path, model_dir: Path, out: Path) -> float:
    """Write a finished model as ``model.onnx``, with its tokenizer and covey_task.json; return how far it is off.

    Any number of rows and tokens can go in.

    Args:
        adapter: see load_finished.
        model_dir: see load_finished.
        out: the folder to make.

    Returns:
        The largest difference between ONNX Runtime's logits and PyTorch's on random rows.

    Raises:
        ExportError: see load_finished; or torch.onnx cannot convert the model, or ONNX Runtime gives other logits.
        StorageError: see new_folder.
    """
    model, rebuild, folder = load_merged(adapter, model_dir), read_rebuild(adapter), look_at(model_dir)
    size_bytes = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
    dims = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    vocabulary, mask_token = folder.vocab_size, rebuild["mask_token_id"]
    with new_folder(out) as partial:
        with compiling("torch.onnx cannot convert the model"), quiet(), torch.no_grad():
            program = torch.onnx.export(
                model,
                random_rows(3, 9, vocabulary, mask_token),
                dynamo=True,
                dynamic_shapes=(dims, dims),
                input_names=["input_ids", "attention_mask"],
                output_names=["logits"],
                opset_version=OPSET,
                verbose=False,
            )
            assert program is not None  # noqa: S101 dynamo=True always returns a program
            program.save(partial / ONNX_FILE, external_data=size_bytes > _LARGEST_BYTES)
        (partial / FILE).write_text(json.dumps(rebuild, indent=1) + "\n")
        with quiet():
            load_tokenizer(folder).save_pretrained(partial)
        return _check(partial / ONNX_FILE, model, vocabulary, mask_token)


def _check(path: Path, model: TaskModel, vocabulary: int, mask_token_id: int | None) -> float:
    with compiling("ONNX Runtime cannot load the graph"):
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    largest = 0.0
    for rows, tokens in _SHAPES:
        input_ids, mask = random_rows(rows, tokens, vocabulary, mask_token_id)
        with torch.no_grad():
            expected = model(input_ids, mask).numpy()
        with compiling(f"ONNX Runtime cannot run {rows} rows of {tokens} tokens"):
            (found,) = session.run(["logits"], {"input_ids": input_ids.numpy(), "attention_mask": mask.numpy()})
        off = float(np.abs(found - expected).max())
        if off > TOLERANCE * max(1.0, float(np.abs(expected).max())):
            raise ExportError(
                f"ONNX Runtime's logits differ from PyTorch's by {off:.1e} with {rows} rows of {tokens} tokens",
                "use --to merged; and report the model's name",
            )
        largest = max(largest, off)
    return largest
