"""The facts about each architecture that Covey cannot read from the model or from its traced graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Architecture:
    """One kind of transformer, by Hugging Face's ``model_type``.

    Attributes:
        is_decoder: whether a token attends only to itself and the tokens before it.
        lora_targets: default of ``--lora-targets``: the query and value projections.
        has_pooler: whether the bare model comes with a pooler, which Covey leaves out.
        attention: the attention implementation that is traced; ``sdpa`` where the architecture has it.
    """

    is_decoder: bool
    lora_targets: list[str]
    has_pooler: bool = False
    attention: str = "sdpa"


_LLAMA = Architecture(is_decoder=True, lora_targets=["q_proj", "v_proj"])

ARCHITECTURES = {
    "bert": Architecture(is_decoder=False, lora_targets=["query", "value"], has_pooler=True),
    "roberta": Architecture(is_decoder=False, lora_targets=["query", "value"], has_pooler=True),
    "deberta-v2": Architecture(is_decoder=False, lora_targets=["query_proj", "value_proj"], attention="eager"),
    "distilbert": Architecture(is_decoder=False, lora_targets=["q_lin", "v_lin"]),
    "mpnet": Architecture(is_decoder=False, lora_targets=["q", "v"], has_pooler=True, attention="eager"),
    "llama": _LLAMA,
    "opt": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
}
"""By ``model_type``; DeBERTa-v3's is ``deberta-v2``, and SmolLM2's is ``llama``."""

_MPNET_PADDING = 1


def longest_row(config: Any) -> int:
    """Return the most tokens that a row can have; RoBERTa's and MPNet's positions start after that of the padding."""
    longest = int(config.max_position_embeddings)
    if config.model_type == "roberta":
        return longest - int(config.pad_token_id) - 1
    if config.model_type == "mpnet":
        return longest - _MPNET_PADDING - 1  # whatever padding its configuration names
    return longest


def has_final_norm(config: Any) -> bool:
    """Return whether a language model has a norm between its last layer and its output: OPT-350M has none."""
    if config.model_type != "opt":
        return True
    return bool(config.do_layer_norm_before) and not getattr(config, "_remove_final_layer_norm", False)


def hidden_width(config: Any) -> int:
    """Return the width of a model's last hidden state; OPT-350M projects it to the width of its embedding."""
    return int(getattr(config, "word_embed_proj_dim", None) or config.hidden_size)
