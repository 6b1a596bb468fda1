"""What tests of the ExecuTorch engine and of its training graphs share: names of runtimes and tasks, one batch."""

from __future__ import annotations

import numpy as np

from edge_runtime.bundle.folder import Bundle
from edge_runtime.data.batch import Batch, pad, pad_completions

BOTH = ("onnxruntime", "executorch")
HEAD = "classify-head"
PROMPT = "classify-prompt"
CAUSAL = "causal-lm"


def batch_of(bundle: Bundle) -> Batch:
    """Rows of different lengths, at sizes that were not traced."""
    rng, task = np.random.Generator(np.random.PCG64(3)), bundle.manifest.task
    rows = [rng.integers(4, 50, size=n).tolist() for n in (4, 11, 2, 7)]
    if task.kind == CAUSAL:
        return pad_completions(rows, [2, 3, 1, 4], task.pad_token_id, chunk_tokens=5)
    for index, row in enumerate(rows):
        if task.mask_token_id is not None:
            row[(7 * index + 1) % len(row)] = task.mask_token_id
    return pad(rows, [0, 1, 1, 0], task.pad_token_id)
