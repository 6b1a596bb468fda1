"""The finished model as one ExecuTorch program with its weights in it: (input_ids, attention_mask) → logits."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch

from export.errors import ExportError, compiling
from export.graphs.executorch_pieces import lower
from export.model.rebuild import FILE, read_rebuild
from export.outputs.folder import new_folder
from export.outputs.merged import load_merged
from export.outputs.random_rows import random_rows
from export.quiet import quiet
from export.source.architectures import longest_row
from export.source.folder import look_at
from export.source.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

PTE_FILE = "model.pte"
MOST_ROWS, USUAL_TOKENS = 16, 128
_LEAST_TOKENS = 2


def write_pte(adapter: Path, model_dir: Path, out: Path, max_tokens: int | None) -> int:
    """Write a finished model as ``model.pte`` for XNNPACK, with its tokenizer and covey_task.json; return its bytes.

    Args:
        adapter: see load_finished.
        model_dir: see load_finished.
        out: the folder to make.
        max_tokens: most tokens of a row: ExecuTorch plans its memory for MOST_ROWS rows of so many. None: USUAL_TOKENS,
            or as many as the model can take.

    Raises:
        ExportError: see load_finished and lower; or the model cannot take so many tokens.
        StorageError: see new_folder.
    """
    folder, rebuild = look_at(model_dir), read_rebuild(adapter)
    longest = longest_row(folder.config)
    max_tokens = min(USUAL_TOKENS, longest) if max_tokens is None else max_tokens
    if not _LEAST_TOKENS < max_tokens <= longest:
        raise ExportError(
            f"the model cannot take rows of {max_tokens} tokens", f"give --max-tokens {_LEAST_TOKENS + 1} to {longest}"
        )
    model = load_merged(adapter, model_dir)
    dims = {
        0: torch.export.Dim("rows", min=1, max=MOST_ROWS),
        1: torch.export.Dim("tokens", min=_LEAST_TOKENS, max=max_tokens),
    }
    example = random_rows(3, min(9, max_tokens), folder.vocab_size, rebuild["mask_token_id"])
    with compiling("torch.export cannot trace the model"), quiet(), torch.no_grad():
        program = torch.export.export(model, example, dynamic_shapes=(dims, dims))
    lowered = lower(program)
    with new_folder(out) as partial, quiet():
        (partial / PTE_FILE).write_bytes(lowered.data)
        (partial / FILE).write_text(json.dumps(rebuild, indent=1) + "\n")
        load_tokenizer(folder).save_pretrained(partial)
    return len(lowered.data)
