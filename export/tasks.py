"""Tasks as modules: (input_ids, attention_mask) → logits, and the loss on top.

``classify-head`` puts a linear head on the encoder, or uses a Hugging Face classifier with its own head.
``classify-prompt`` asks a causal language model for the next token and compares the label words only: the rows of the
output embedding that belong to them are the whole head, no batch × tokens × vocabulary tensor is made.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from edge_runtime.data import read_rows
from edge_runtime.errors import CoveyError
from export.architectures import hidden_width
from export.errors import ExportError

if TYPE_CHECKING:
    from pathlib import Path

    from export.folder import ModelFolder

Pooling = Literal["mean", "cls", "last"]
POOLINGS: tuple[Pooling, ...] = ("mean", "cls", "last")


def default_pooling(folder: ModelFolder) -> Pooling:
    """Return how tokens become one vector: what sentence-transformers wrote, else the mean, or the last token."""
    try:
        declared = json.loads((folder.path / "1_Pooling" / "config.json").read_text())
    except (OSError, ValueError):
        declared = {}
    if declared.get("pooling_mode_cls_token"):
        return "cls"
    return "last" if folder.is_decoder and not declared else "mean"


def last_token(hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Return each row's hidden state at its last real token: (rows, tokens, width) → (rows, width)."""
    index = (attention_mask.sum(dim=1) - 1).clamp(min=0)
    index = index.reshape(-1, 1, 1).expand(-1, 1, hidden.shape[-1])
    return hidden.gather(1, index).squeeze(1)


class PooledClassifier(nn.Module):
    """An encoder, a pooling over its tokens, and a linear head.

    Args:
        encoder: a Hugging Face base model.
        n_labels: number of labels.
        pooling: how tokens become one vector.
        logit_scale: constant factor on the logits; a larger one lets equal steps of the head do more.
    """

    def __init__(self, encoder: Any, n_labels: int, pooling: Pooling, logit_scale: float) -> None:
        super().__init__()
        self.config = encoder.config
        self.encoder = encoder
        self.pooling = pooling
        self.logit_scale = logit_scale
        self.classifier = nn.Linear(hidden_width(encoder.config), n_labels)
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def features(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return the pooled hidden states: (rows, width)."""
        hidden: torch.Tensor = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        if self.pooling == "cls":
            return hidden[:, 0]
        if self.pooling == "last":
            return last_token(hidden, attention_mask)
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * mask).sum(dim=1) / mask.sum(dim=1)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return the logits: (rows, labels)."""
        logits: torch.Tensor = self.classifier(self.features(input_ids, attention_mask))
        return logits * self.logit_scale


class TaskModel(nn.Module):
    """A model, wrapped by PEFT or not, with the logits of its task.

    Args:
        model: what PEFT wrapped, or the bare model.
        label_token_ids: token id of each label word, for classify-prompt; None for classify-head.
    """

    def __init__(self, model: Any, label_token_ids: list[int] | None) -> None:
        super().__init__()
        self.model = model
        ids = None if label_token_ids is None else torch.tensor(label_token_ids)
        self.register_buffer("label_token_ids", ids, persistent=False)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return the logits: (rows, labels)."""
        if self.label_token_ids is None:
            out = self.model(input_ids=input_ids, attention_mask=attention_mask)
            logits: torch.Tensor = out if isinstance(out, torch.Tensor) else out.logits
            return logits
        causal = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        hidden = causal.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)[0]
        words = causal.get_output_embeddings().weight.index_select(0, self.label_token_ids)
        return nn.functional.linear(last_token(hidden, attention_mask), words)


class LossModel(nn.Module):
    """A task model with its loss: mean cross-entropy over the rows."""

    def __init__(self, task_model: TaskModel) -> None:
        super().__init__()
        self.task_model = task_model

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss, a scalar, and the logits, (rows, labels)."""
        logits = self.task_model(input_ids, attention_mask)
        return nn.functional.cross_entropy(logits, labels), logits


def label_word_ids(tokenizer: Any, label_words: list[str]) -> list[int]:
    """Return the token id of each label word.

    Raises:
        ExportError: a word is not exactly one token, or two words are the same one.
    """
    ids: list[int] = []
    for word in label_words:
        tokens = tokenizer(word, add_special_tokens=False)["input_ids"]
        if len(tokens) != 1 or tokens[0] == tokenizer.unk_token_id:
            pieces = tokenizer.convert_ids_to_tokens(tokens)
            raise ExportError(
                f"label word {word!r} is {len(tokens)} tokens in this tokenizer: {pieces}",
                "choose a word that is one token; most tokenizers want a space before it, as in ' great'",
            )
        ids.append(int(tokens[0]))
    if len(set(ids)) != len(ids):
        raise ExportError(f"the label words {label_words} are not all different tokens", "choose one for each label")
    return ids


def read_examples(path: Path, labels: list[str]) -> tuple[list[str], list[int]]:
    """Read labelled texts (JSON Lines or CSV) for a head's start; returns texts and label indexes.

    Raises:
        ExportError: the rows are wrong, or a label has none.
    """
    try:
        rows = read_rows(path, labels)
    except CoveyError as error:
        raise ExportError(f"--head-init: {error.what}", error.hint) from error
    missing = [label for index, label in enumerate(labels) if index not in {row.label for row in rows}]
    if missing:
        raise ExportError(f"--head-init {path} has no example of {', '.join(missing)}", "add some")
    return [row.text for row in rows], [row.label for row in rows]
