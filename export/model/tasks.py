"""The classification tasks as PyTorch modules: (input_ids, attention_mask) → logits, and the loss.

``classify-head`` puts a linear head on the encoder, or uses a Hugging Face classifier with its own head.
``classify-prompt`` asks a language model for one token, the next one (causal) or the masked one, and compares the label
words only. That token's hidden state goes through the model's own head, and is then multiplied with the label words'
rows of the output embedding, so that no batch × tokens × vocabulary tensor exists.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from edge_runtime.data.examples import read_rows
from edge_runtime.errors import CoveyError
from export.errors import ExportError
from export.model.names import unwrapped
from export.source.architectures import hidden_width
from export.source.weights import read_object

if TYPE_CHECKING:
    from pathlib import Path

    from export.source.folder import ModelFolder

Pooling = Literal["mean", "cls", "last"]
POOLINGS: tuple[Pooling, ...] = ("mean", "cls", "last")


def default_pooling(folder: ModelFolder) -> Pooling:
    """Return the pooling that sentence-transformers declared in the folder; else last for a decoder, mean otherwise.

    Raises:
        ExportError: the file that declares it is unreadable.
    """
    path = folder.path / "1_Pooling" / "config.json"
    declared = read_object(path) if path.is_file() else {}
    if declared.get("pooling_mode_cls_token"):
        return "cls"
    return "last" if folder.is_decoder and not declared else "mean"


def last_position(attention_mask: torch.Tensor) -> torch.Tensor:
    """Return the position of each row's last real token: (rows, tokens) → (rows,)."""
    return (attention_mask.sum(dim=1) - 1).clamp(min=0)


def mask_position(input_ids: torch.Tensor, mask_token_id: int) -> torch.Tensor:
    """Return the position of each row's first mask token, 0 where it has none: (rows, tokens) → (rows,)."""
    return (input_ids == mask_token_id).to(torch.int32).argmax(dim=1)


def at_position(hidden: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """Return each row's hidden state at one position: (rows, tokens, width) → (rows, 1, width)."""
    return hidden.gather(1, position.reshape(-1, 1, 1).expand(-1, 1, hidden.shape[-1]))


def next_word(model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Return the input of a causal language model's output embedding at each row's last token: (rows, width)."""
    hidden = model.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)[0]
    return at_position(hidden, last_position(attention_mask)).squeeze(1)


def masked_word(model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, mask_token_id: int) -> torch.Tensor:
    """Return the input of a masked language model's output embedding at each row's first mask: (rows, width).

    The model runs unchanged. One hook reduces the base model's output to the mask's hidden state; another one catches
    what the head makes of it. The logits of the whole vocabulary, for one token per row, are unused and therefore not
    in the graph.
    """
    caught: list[torch.Tensor] = []

    def mask_only(_base: Any, _arguments: Any, output: Any) -> Any:
        output["last_hidden_state"] = at_position(output["last_hidden_state"], mask_position(input_ids, mask_token_id))
        return output

    hooks = [
        model.base_model.register_forward_hook(mask_only),
        model.get_output_embeddings().register_forward_pre_hook(lambda _decoder, given: caught.append(given[0])),
    ]
    try:
        model(input_ids=input_ids, attention_mask=attention_mask)
    finally:
        for hook in hooks:
            hook.remove()
    return caught[0].squeeze(1)


class PooledClassifier(nn.Module):
    """An encoder, a pooling over its tokens, and a linear head.

    Args:
        encoder: a Hugging Face base model.
        n_labels: number of labels.
        pooling: how the tokens' hidden states become one vector.
        logit_scale: constant factor on the logits; with a larger one, a step of the same size changes them more.
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
            return at_position(hidden, last_position(attention_mask)).squeeze(1)
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * mask).sum(dim=1) / mask.sum(dim=1)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return the logits: (rows, labels)."""
        logits: torch.Tensor = self.classifier(self.features(input_ids, attention_mask))
        return logits * self.logit_scale


class TaskModel(nn.Module):
    """A model, wrapped by PEFT or bare, that returns the logits of its task.

    Args:
        model: PEFT's wrapped model, or the bare model in full mode.
        label_token_ids: token id of each label word, for classify-prompt; None for other tasks.
        mask_token_id: id of the mask token, for a masked language model; None for others.
    """

    def __init__(self, model: Any, label_token_ids: list[int] | None, mask_token_id: int | None) -> None:
        super().__init__()
        self.model = model
        self.mask_token_id = mask_token_id
        ids = None if label_token_ids is None else torch.tensor(label_token_ids)
        self.register_buffer("label_token_ids", ids, persistent=False)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return the logits: (rows, labels)."""
        if self.label_token_ids is None:
            out = self.model(input_ids=input_ids, attention_mask=attention_mask)
            logits: torch.Tensor = out if isinstance(out, torch.Tensor) else out.logits
            return logits
        model = unwrapped(self.model)
        if self.mask_token_id is None:
            hidden = next_word(model, input_ids, attention_mask)
        else:
            hidden = masked_word(model, input_ids, attention_mask, self.mask_token_id)
        decoder = model.get_output_embeddings()
        bias = None if decoder.bias is None else decoder.bias.index_select(0, self.label_token_ids)
        return nn.functional.linear(hidden, decoder.weight.index_select(0, self.label_token_ids), bias)


class LossModel(nn.Module):
    """A task model with its loss, the mean cross-entropy over the rows."""

    def __init__(self, task_model: TaskModel) -> None:
        super().__init__()
        self.task_model = task_model

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss (a scalar) and the logits (rows, labels)."""
        logits = self.task_model(input_ids, attention_mask)
        return nn.functional.cross_entropy(logits, labels), logits


def label_word_ids(tokenizer: Any, label_words: list[str]) -> list[int]:
    """Return the token id of each label word.

    Raises:
        ExportError: a word is not exactly one token, or two words are the same token.
    """
    ids: list[int] = []
    for word in label_words:
        tokens = tokenizer(word, add_special_tokens=False)["input_ids"]
        if len(tokens) != 1 or tokens[0] == tokenizer.unk_token_id:
            pieces = tokenizer.convert_ids_to_tokens(tokens)
            raise ExportError(
                f"label word {word!r} is {len(tokens)} tokens in this tokenizer: {pieces}",
                "choose a word that is one token; most tokenizers need a space before it, as in ' great, bad'",
            )
        ids.append(int(tokens[0]))
    if len(set(ids)) != len(ids):
        raise ExportError(f"the label words {label_words} are not all different tokens", "choose one token per label")
    return ids


def read_examples(path: Path, labels: list[str]) -> tuple[list[str], list[int]]:
    """Read labelled texts (JSON Lines or CSV) to initialise a head from; return texts and label indexes.

    Raises:
        ExportError: a row is invalid, or a label has no row.
    """
    try:
        rows = read_rows(path, labels)
    except CoveyError as error:
        raise ExportError(f"--head-init: {error.what}", error.hint) from error
    missing = [label for index, label in enumerate(labels) if index not in {row.label for row in rows}]
    if missing:
        raise ExportError(f"--head-init {path} has no example of {', '.join(missing)}", "add a row for each")
    return [row.text for row in rows], [row.label for row in rows]
