"""Folders with tiny models in every format that an export reads; reading one, or being refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tiny_gguf import write_gguf
from tiny_models import make_model
from transformers import AutoModel

from export.errors import ExportError
from export.source.folder import look_at
from export.source.loading import load_model
from export.source.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "4d" * 32 + "\nsize 123480\n"
QUERY = "encoder.layer.0.attention.self.query.weight"


def read(folder: Path) -> None:
    """Read everything of a folder that an export reads."""
    looked = look_at(folder)
    load_tokenizer(looked)
    load_model(looked, "base")


def refusal(folder: Path) -> str:
    with pytest.raises(ExportError) as caught:
        read(folder)
    assert caught.value.hint
    assert "\n" not in caught.value.what
    return caught.value.what


def _safetensors(folder: Path) -> Path:
    return make_model("bert", folder)


def _shards(folder: Path) -> Path:
    model = AutoModel.from_pretrained(make_model("bert", folder), add_pooling_layer=False)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="40KB")
    return folder


def _pickle(folder: Path) -> Path:
    state = load_file(make_model("bert", folder) / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state | {"embeddings.position_ids": torch.arange(64)[None]}, folder / "pytorch_model.bin")
    return folder


def _gguf(folder: Path) -> Path:
    write_gguf(make_model("llama", folder.with_name(folder.name + "-source")), folder / "model.gguf", "Q8_0")
    return folder


def _adapter(folder: Path) -> Path:
    base = AutoModel.from_pretrained(make_model("bert", folder), add_pooling_layer=False)
    get_peft_model(base, LoraConfig(r=4, target_modules=["query", "value"])).save_pretrained(folder)
    return folder


MAKERS: dict[str, Callable[[Path], Path]] = {
    "safetensors": _safetensors,
    "shards": _shards,
    "pickle": _pickle,
    "gguf": _gguf,
    "adapter": _adapter,
}


def path_in(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if found:
        return found[0]
    (folder / pattern).parent.mkdir(exist_ok=True)
    return folder / pattern
