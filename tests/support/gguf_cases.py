"""Finished tiny language models that are written as GGUF, and their logits and greedy answers in PyTorch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from tiny_models import make_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from export.model.build import build
from export.model.lora import save_adapter
from export.model.options import LoraOptions, TaskOptions
from export.model.rebuild import write_rebuild
from export.source.folder import look_at
from server.cli import main

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from export.model.build import ExportModel

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
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


def gguf_case(kind: str, root: Path, config: dict[str, Any] | None = None) -> GgufCase:
    """Make a tiny model with changes to its config.json, and a finished adapter of every linear module."""
    folder = make_model(kind, root / "models" / kind)
    if config:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return GgufCase(kind, root, folder, adapters(adapted(folder), root, scale=0.1))


def adapted(folder: Path) -> ExportModel:
    """Return a language model with a new adapter on every linear module, as ``covey export`` makes it."""
    options = TaskOptions("causal-lm", [], None, None, 32, None, None, None)
    return build(look_at(folder), options, LoraOptions(4, 8.0, TARGETS, None, ["B"], seed=0))


def adapters(made: ExportModel, root: Path, scale: float) -> Path:
    """Write the adapter as it is to ``untrained``, then with every B drawn anew to ``finished``, which is returned."""
    _save(made, root / "untrained")
    generator = torch.Generator().manual_seed(3)
    for name, parameter in made.peft_model.named_parameters():
        if "lora_B" in name:
            parameter.normal_(0, scale, generator=generator)
    return _save(made, root / "finished")


def _save(made: ExportModel, folder: Path) -> Path:
    save_adapter(made.peft_model, folder)
    write_rebuild(made.rebuild, folder)
    return folder


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
