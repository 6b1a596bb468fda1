"""Finished tiny language models that are written as GGUF, and their logits and greedy answers in PyTorch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from exports import generic_adapter
from parity import finished_folder
from tiny_exports import TinyExport
from tiny_models import make_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from server.cli import main

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from edge_runtime.values import FloatVector

TEXT = "the film was very good, and 12 Ünï it's"


@dataclass(frozen=True)
class GgufCase:
    """A tiny model's folder, and a finished adapter of it with a folder for what is written."""

    kind: str
    root: Path
    model_dir: Path
    adapter: Path

    def to(self, form: str, out: str, *extra: str, adapter: Path | None = None) -> int:
        """Run ``covey finish``; return its exit code."""
        given = ["finish", str(adapter or self.adapter), "--model", str(self.model_dir), "--to", form]
        return main([*given, "--out", str(self.root / out), *extra])

    def ids(self, text: str = TEXT) -> list[int]:
        """Return a text's tokens, without special ones around it."""
        found: list[int] = AutoTokenizer.from_pretrained(self.model_dir)(text, add_special_tokens=False)["input_ids"]
        return found


def gguf_case(kind: str, root: Path, config: dict[str, Any] | None = None, **options: Any) -> GgufCase:
    """Make a tiny model with changes to its config.json, export it, and finish an adapter that matters."""
    folder = make_model(kind, root / "models" / kind)
    if config:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
    bundle = TinyExport(kind, "causal-lm", splits=(1,), **options).write(root / "models", root / "bundle")
    theta: FloatVector = generic_adapter(bundle)
    finished_folder(bundle, bundle.initial_adapter(), root / "untrained")
    return GgufCase(kind, root, folder, finished_folder(bundle, theta, root / "finished"))


def logits_of(model: Any, ids: list[int]) -> NDArray[np.float32]:
    """Return PyTorch's logits, (tokens, vocabulary)."""
    with torch.no_grad():
        found: NDArray[np.float32] = model(torch.tensor([ids])).logits[0].numpy()
    return found


def loaded(folder: Path, **options: Any) -> Any:
    """Return the causal language model of a folder, float32."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()


def continued(model: Any, ids: list[int], new_tokens: int) -> list[int]:
    """Return the likeliest tokens that follow, one after the other."""
    made: list[int] = []
    for _ in range(new_tokens):
        made.append(int(logits_of(model, ids + made)[-1].argmax()))
    return made
