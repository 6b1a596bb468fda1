"""Makes tiny random models of every architecture, with real tokenizers, as Hugging Face folders."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    DebertaV2ForSequenceClassification,
    DebertaV2Model,
    DistilBertConfig,
    DistilBertForMaskedLM,
    DistilBertForSequenceClassification,
    DistilBertModel,
    LlamaConfig,
    LlamaForCausalLM,
    MPNetConfig,
    MPNetForMaskedLM,
    MPNetForSequenceClassification,
    MPNetModel,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
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
    """Return a WordPiece tokenizer that adds [CLS] … [SEP], like BERT's."""
    vocabulary = {word: index for index, word in enumerate(SPECIAL + WORDS + ["##s", "##ing", "[MASK]"])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def _byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer in which a word with its leading space is one token, like GPT's and Llama's."""
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
    # A random model hardly distinguishes two texts; with larger weights, logits, losses and gradients differ.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0 if parameter.ndim > 1 else 1.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


_ENCODERS: dict[str, dict[str, Any]] = {
    "bert": {"": BertModel, "-classifier": BertForSequenceClassification, "-mlm": BertForMaskedLM},
    "roberta": {"": RobertaModel, "-classifier": RobertaForSequenceClassification, "-mlm": RobertaForMaskedLM},
    "deberta": {"": DebertaV2Model, "-classifier": DebertaV2ForSequenceClassification, "-mlm": DebertaV2ForMaskedLM},
    "distilbert": {
        "": DistilBertModel,
        "-classifier": DistilBertForSequenceClassification,
        "-mlm": DistilBertForMaskedLM,
    },
    "mpnet": {"": MPNetModel, "-classifier": MPNetForSequenceClassification, "-mlm": MPNetForMaskedLM},
}
POSITIONS = 64
WINDOW = 8


def _encoder_config(kind: str, vocab_size: int) -> Any:
    """Return the real configuration, small; DeBERTa-v3 has few buckets, so short rows reach the logarithmic ones."""
    sizes = {"vocab_size": vocab_size, "max_position_embeddings": POSITIONS, "pad_token_id": 0, **_SIZES}
    if kind == "bert":
        return BertConfig(**sizes)
    if kind == "roberta":
        return RobertaConfig(type_vocab_size=1, **sizes)
    if kind == "mpnet":
        return MPNetConfig(**sizes)
    if kind == "distilbert":
        return DistilBertConfig(
            vocab_size=vocab_size,
            max_position_embeddings=POSITIONS,
            pad_token_id=0,
            dim=32,
            n_layers=LAYERS,
            n_heads=4,
            hidden_dim=64,
        )
    return DebertaV2Config(
        relative_attention=True,
        position_buckets=8,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        type_vocab_size=0,
        **sizes,
    )


def _make_decoder(kind: str, vocab_size: int) -> Any:
    family, _, variant = kind.partition("-")
    sizes = {"vocab_size": vocab_size, "max_position_embeddings": POSITIONS, "pad_token_id": 0, **_SIZES}
    sizes["tie_word_embeddings"] = variant == "tied"
    if family == "opt":
        del sizes["intermediate_size"]
        narrow = variant == "narrow"
        config = OPTConfig(
            ffn_dim=64, word_embed_proj_dim=16 if narrow else 32, do_layer_norm_before=not narrow, **sizes
        )
        return OPTForCausalLM(config)
    sizes["num_key_value_heads"] = 2
    if variant == "sliding":
        sizes |= {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": int(family == "qwen2")}
    if variant == "wide":
        sizes["head_dim"] = 16
    if family == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(**sizes))
    if family == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(head_dim=16, **sizes))
    return LlamaForCausalLM(LlamaConfig(**sizes))


def make_model(kind: str, folder: Path, seed: int = 0) -> Path:
    """Write a tiny model and return its folder.

    Kinds: bert, roberta, deberta, distilbert, mpnet (bare encoders), the same with -classifier (two labels) or -mlm;
    llama, qwen2, qwen3 (two key-value heads for four query heads), opt, the same with -tied (tied embeddings);
    opt-narrow (embeddings narrower than the layers, as in OPT-350M); qwen2-sliding (all layers but the first have a
    sliding window), qwen3-sliding (all of them), llama-wide (heads of 16 where hidden size over heads is 8).
    """
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    family, dash, variant = kind.partition("-")
    if family not in _ENCODERS:
        tokenizer = _byte_tokenizer()
        return _save(_make_decoder(kind, len(tokenizer)), tokenizer, folder)
    tokenizer = _word_tokenizer()
    config = _encoder_config(family, len(tokenizer))
    config.num_labels = 2
    bare = {"add_pooling_layer": False} if not variant and family in ("bert", "roberta", "mpnet") else {}
    return _save(_ENCODERS[family][dash + variant](config, **bare), tokenizer, folder)


def reviews(n_rows: int, seed: int) -> list[dict[str, str]]:
    """Return random texts whose label a model can learn from one word of praise or blame."""
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


def completions(n_rows: int, seed: int) -> list[dict[str, str]]:
    """Return random prompts whose completion a model can learn: it says whether the prompt holds praise or blame."""
    verdicts = {"good": " very good film", "bad": " bad"}
    return [{"prompt": f"{row['text']} it was", "completion": verdicts[row["label"]]} for row in reviews(n_rows, seed)]


def write_rows(rows: list[dict[str, str]], path: Path) -> Path:
    """Write rows as JSON Lines and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
