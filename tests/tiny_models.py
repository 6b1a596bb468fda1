"""Tiny random models with real tokenizers, as Hugging Face folders: the architectures without their size."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaModel,
)

if TYPE_CHECKING:
    from pathlib import Path

WORDS = (
    "a an the film movie plot story actor scene it was is not very good bad great terrible boring fun slow fast long "
    "short bright dark sad happy true false new old best worst one two three of in on and but with without ever never"
).split()
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
LAYERS = 3
_SIZES = {"hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "intermediate_size": 64}


def _word_tokenizer() -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer with [CLS] … [SEP], as BERT's."""
    vocabulary = {word: index for index, word in enumerate(SPECIAL + WORDS + ["##s", "##ing"])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def _byte_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer in which each word with a space before it is one token, as in GPT's and Llama's."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2} | {letter: index + 3 for index, letter in enumerate(alphabet)}
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        current = "Ġ"
        for letter in word:
            if current + letter not in vocabulary:
                vocabulary[current + letter] = len(vocabulary)
                merges.append((current, letter))
            current += letter
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def _save(model: Any, tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    # A random model hardly tells two texts apart: larger weights make logits, losses and gradients that differ.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0 if parameter.ndim > 1 else 1.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_model(kind: str, folder: Path, seed: int = 0) -> Path:
    """Write a tiny model and return its folder.

    Kinds: bert, roberta (bare encoders), bert-classifier, roberta-classifier (two labels), llama (causal, with two
    key-value heads for four query heads), llama-tied (tied embeddings).
    """
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    if kind.startswith("llama"):
        tokenizer = _byte_tokenizer()
        config = LlamaConfig(
            vocab_size=len(tokenizer), num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0,
            tie_word_embeddings=kind == "llama-tied", **_SIZES,
        )  # fmt: skip
        return _save(LlamaForCausalLM(config), tokenizer, folder)
    tokenizer = _word_tokenizer()
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 64, "pad_token_id": 0, **_SIZES}
    makers = {
        "bert": lambda: BertModel(BertConfig(**sizes), add_pooling_layer=False),
        "bert-classifier": lambda: BertForSequenceClassification(BertConfig(num_labels=2, **sizes)),
        "roberta": lambda: RobertaModel(RobertaConfig(type_vocab_size=1, **sizes), add_pooling_layer=False),
        "roberta-classifier": lambda: RobertaForSequenceClassification(RobertaConfig(type_vocab_size=1, **sizes)),
    }
    return _save(makers[kind](), tokenizer, folder)


def reviews(n_rows: int, seed: int) -> list[dict[str, str]]:
    """Random texts whose label a model can learn: they hold a word of praise or of blame."""
    generator = torch.Generator().manual_seed(seed)

    def draw(words: list[str], count: int) -> list[str]:
        return [words[int(i)] for i in torch.randint(0, len(words), (count,), generator=generator)]

    neutral = [word for word in WORDS if word not in ("good", "great", "best", "bad", "terrible", "worst")]
    rows = []
    for index in range(n_rows):
        label = ("bad", "good")[index % 2]
        verdict = draw(["good", "great", "best"] if label == "good" else ["bad", "terrible", "worst"], 1)
        length = 2 + int(torch.randint(0, 8, (1,), generator=generator))
        rows.append({"text": " ".join(draw(neutral, length) + verdict + draw(neutral, 2)), "label": label})
    return rows


def write_rows(rows: list[dict[str, str]], path: Path) -> Path:
    """Write rows as JSON Lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
