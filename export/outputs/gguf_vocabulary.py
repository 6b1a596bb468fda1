"""A tokenizer in GGUF's form: tokens, merges, special tokens, the chat template, and how a text is divided into words.

llama.cpp has its own code for each way to divide a text, and finds it by a name. A tokenizer whose way has no name here
is refused: with a wrong name llama.cpp would make other tokens and say nothing. The vocabulary of a model that came as
a GGUF file is copied from it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import gguf

from export.errors import ExportError
from export.source.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from export.source.folder import ModelFolder

_WAY_AROUND = "use --to merged, and llama.cpp's convert_hf_to_gguf.py"
_PREFIX = "tokenizer."
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_SIGNS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_BY_PATTERN = {
    _CONTRACTIONS + r"\p{N}" + _SIGNS: "qwen2",
    _CONTRACTIONS + r"\p{N}{1,3}" + _SIGNS: "llama-bpe",
}
"""llama.cpp's names of patterns that divide a text into words."""
_ROLES = ("bos", "eos", "unk", "pad", "sep")


def add_vocabulary(writer: Any, folder: ModelFolder) -> None:
    """Add the tokenizer of a model's folder.

    Args:
        writer: a GGUFWriter.
        folder: the folder.

    Raises:
        ExportError: llama.cpp's name for what the tokenizer does is not known here.
    """
    if folder.gguf_file is not None:
        _copy(writer, folder)
        return
    tokenizer = load_tokenizer(folder)
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    model = content["model"]
    way = _way_of(content)
    if way is None:
        raise ExportError(
            f"how the tokenizer in {folder.path} divides a text has no name in GGUF that is known here", _WAY_AROUND
        )
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(way)
    tokens, types = _tokens(tokenizer, folder.vocab_size)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]])
    for role in _ROLES:
        token = getattr(tokenizer, f"{role}_token_id")
        if token is not None and token < folder.vocab_size:
            getattr(writer, f"add_{role}_token_id")(token)
    around = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(tokenizer.bos_token_id is not None and around[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(tokenizer.eos_token_id is not None and around[-1] == tokenizer.eos_token_id)
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = [{"name": name, "template": text} for name, text in template.items()]
    if template:
        writer.add_chat_template(template)


def _copy(writer: Any, folder: ModelFolder) -> None:
    for name, field in gguf.GGUFReader(folder.path / str(folder.gguf_file)).fields.items():
        if name.startswith(_PREFIX):
            sub_type = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type)


def _tokens(tokenizer: Any, rows: int) -> tuple[list[str], list[gguf.TokenType]]:
    """Return the text and the type of each row of the embedding; rows without a token are unused."""
    texts = {index: text for text, index in tokenizer.get_vocab().items() if index < rows}
    added = tokenizer.added_tokens_decoder
    types = []
    for index in range(rows):
        if index not in texts:
            types.append(gguf.TokenType.UNUSED)
        elif index not in added:
            types.append(gguf.TokenType.NORMAL)
        else:
            types.append(gguf.TokenType.CONTROL if added[index].special else gguf.TokenType.USER_DEFINED)
    return [texts.get(index, f"[PAD{index}]") for index in range(rows)], types


def _way_of(content: dict[str, Any]) -> str | None:
    """Return llama.cpp's name for how a byte-level BPE divides a text into words; None: it is not known here.

    Args:
        content: ``tokenizer.json``.
    """
    model, normalizer, first, decoder = (content[key] for key in ("model", "normalizer", "pre_tokenizer", "decoder"))
    if model["type"] != "BPE" or model.get("byte_fallback") or (decoder or {}).get("type") != "ByteLevel":
        return None
    if normalizer is not None and normalizer["type"] != "NFC":
        return None
    steps = (first or {}).get("pretokenizers", [first])
    way = _way_of_steps(*steps) if 1 <= len(steps) <= 2 and all(steps) else None
    return way if bool(model.get("ignore_merges")) == (way == "llama-bpe") else None


def _way_of_steps(first: dict[str, Any], last: dict[str, Any] | None = None) -> str | None:
    """Return the name for one or two steps of a pre-tokenizer, the last of which turns bytes into letters."""
    step, last = (None, first) if last is None else (first, last)
    if last["type"] != "ByteLevel" or last["add_prefix_space"]:
        return None
    if last["use_regex"]:
        if step is None:
            return "gpt-2"
        return "smollm" if step["type"] == "Digits" and step["individual_digits"] else None
    if step is None or step["type"] != "Split" or step["behavior"] != "Isolated" or step["invert"]:
        return None
    pattern: str | None = step["pattern"].get("Regex")
    return _BY_PATTERN.get(pattern or "")
