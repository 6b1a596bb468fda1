"""Continuing prompts, for tests: bundles as they were before decode graphs, and PyTorch's own continuation."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec

from edge_runtime.bundle.decode import DECODE_FILE, DECODE_GRAPH_FILE
from edge_runtime.engines.choose import Engines
from edge_runtime.engines.continuation import Continuer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.engines.continuation import Continuation
    from edge_runtime.engines.sampling import Generation
    from edge_runtime.values import FloatVector


def complete(bundle: Bundle, theta: FloatVector, prompts: Sequence[str], generation: Generation) -> list[Continuation]:
    """Continue prompts with a bundle that is used once, on one thread."""
    return Continuer(bundle, Engines(threads=1)).complete(theta, prompts, generation)


def without_decode(bundle: Bundle) -> Bundle:
    """Return the bundle as an export without a decode graph describes it."""
    files = [entry for entry in bundle.manifest.files if entry.path not in (DECODE_FILE, DECODE_GRAPH_FILE)]
    return replace(bundle, manifest=msgspec.structs.replace(bundle.manifest, files=files))


def eager_tokens(model: Any, ids: list[int], new_tokens: int, eos_token_id: int | None) -> list[int]:
    """Return what transformers' own generate continues tokens with, greedily and with its own cache."""
    import torch

    with torch.no_grad():
        made = model.generate(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
            max_new_tokens=new_tokens,
            do_sample=False,
            eos_token_id=eos_token_id,
            pad_token_id=0,
        )
    new = made[0, len(ids) :].tolist()
    return new[:-1] if new and new[-1] == eos_token_id else new
