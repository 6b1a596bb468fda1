"""What an export does otherwise than asked for, in a sentence each: tokens, the length of rows, padding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edge_runtime.bundle.manifest import CAUSAL_LM
from export.source.tokenizer import fit_to_vocabulary

if TYPE_CHECKING:
    from edge_runtime.bundle.manifest import Task
    from export.model.options import TaskOptions
    from export.source.folder import ModelFolder

_LEAST_SHARE = 0.5
"""Embeddings are padded to a round number of rows, never to twice the vocabulary."""


def fit_tokenizer(folder: ModelFolder, options: TaskOptions, tokenizer: Any) -> list[str]:
    """Compare the tokenizer with the model's vocabulary for a task; see fit_to_vocabulary.

    Raises:
        ExportError: the tokenizer has tokens that the model has no embedding for, and they may be used.
    """
    needed = [None if folder.gguf_file else tokenizer.pad_token_id]
    needed += [tokenizer.eos_token_id] if options.kind == CAUSAL_LM else []
    needed += [tokenizer.mask_token_id] if options.kind == "classify-prompt" and not folder.is_decoder else []
    notes = []
    removed = fit_to_vocabulary(folder, tokenizer, needed)
    if removed:
        notes.append(
            f"the model has no embedding for {', '.join(repr(text) for text in removed)}, which the tokenizer's class "
            "adds: the bundle's tokenizer reads it as plain text"
        )
    if len(tokenizer) < folder.vocab_size * _LEAST_SHARE:
        notes.append(
            f"the tokenizer has {len(tokenizer)} tokens, the model knows {folder.vocab_size}: "
            "look whether the tokenizer's file is cut, or belongs to another model"
        )
    return notes


def task_notes(folder: ModelFolder, options: TaskOptions, task: Task) -> list[str]:
    """Say where the task's longest row is shorter than asked for, and where model and tokenizer pad differently."""
    notes = []
    if task.max_tokens < options.max_tokens:
        notes.append(
            f"--max-tokens {options.max_tokens}: the model's positions end sooner, "
            f"longer rows are cut to {task.max_tokens} tokens"
        )
    configured = folder.config.pad_token_id
    if configured is not None and configured != task.pad_token_id:
        notes.append(
            f"the tokenizer pads with token {task.pad_token_id}, the model's configuration says {configured}: "
            f"the bundle pads with {task.pad_token_id}, and the model looks at no padding"
        )
    return notes
