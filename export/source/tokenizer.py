"""Loads the tokenizer of a model folder, and compares it with the model's vocabulary.

A token beyond the embedding's rows has no meaning for the model, and reading its row ends every step on a device.
"""

from __future__ import annotations

import importlib
import json
import re
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer

from export.errors import ExportError
from export.quiet import quiet
from export.source.foreign import reading

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from export.source.folder import ModelFolder

_FILES_HINT = "put tokenizer.json beside the model"
_FAST_FILES = ("tokenizer.json", "vocab.txt", "vocab.json")
_TIKTOKEN_LINE = re.compile(rb"^[A-Za-z0-9+/]+=* \d+\r?\n")
_PACKAGES = {
    "SentencePiece": {"sentencepiece": "sentencepiece", "google.protobuf": "protobuf"},
    "tiktoken": {"tiktoken": "tiktoken"},
}
"""What converts a vocabulary to a fast tokenizer: by its kind, the modules and the packages that they come in."""
_ROLES = ("unk_token", "bos_token", "eos_token", "sep_token", "cls_token", "mask_token")
_SHOWN = 5


def load_tokenizer(folder: ModelFolder) -> Any:
    """Load the tokenizer in its fast form, which the device's ``tokenizers`` library reads.

    Raises:
        ExportError: the tokenizer is missing, unreadable, has no fast form, or needs a package that is not installed.
    """
    if folder.gguf_file is None:
        _check_packages(folder.path)
    with reading(f"cannot load the tokenizer in {folder.path}", _FILES_HINT), quiet():
        options = {"gguf_file": folder.gguf_file} if folder.gguf_file else {}
        tokenizer = AutoTokenizer.from_pretrained(folder.path, use_fast=True, trust_remote_code=False, **options)
        known = {"tokenizer.json", *tokenizer.vocab_files_names.values()}
    # Without a vocabulary, transformers silently makes an empty tokenizer of the model's type.
    if folder.gguf_file is None and not any((folder.path / name).is_file() for name in known):
        raise ExportError(f"there is no tokenizer in {folder.path}", _FILES_HINT)
    if not tokenizer.is_fast:
        raise ExportError(f"the tokenizer in {folder.path} has no fast form", _FILES_HINT)
    if set(tokenizer.get_vocab().values()) <= set(tokenizer.added_tokens_decoder):
        raise ExportError(
            f"the tokenizer in {folder.path} has special tokens alone: its vocabulary could not be read", _FILES_HINT
        )
    return tokenizer


def _check_packages(folder: Path) -> None:
    """Check that the packages are installed that convert the folder's vocabulary, if it has no fast form yet."""
    if any((folder / name).is_file() for name in _FAST_FILES):
        return
    for path in sorted({*folder.glob("*.model"), *folder.glob("*.tiktoken")}):
        with path.open("rb") as file:
            kind = "tiktoken" if _TIKTOKEN_LINE.match(file.read(1024)) else "SentencePiece"
        missing = [package for module, package in _PACKAGES[kind].items() if not _is_installed(module)]
        if missing:
            raise ExportError(
                f"{path} is a vocabulary of {kind}'s, and there is no tokenizer.json: to convert it, the package "
                f"{' and '.join(missing)} is missing",
                f"pip install {' '.join(missing)}; or {_FILES_HINT}",
            )


def _is_installed(module: str) -> bool:
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def fit_to_vocabulary(folder: ModelFolder, tokenizer: Any, needed: Iterable[int | None]) -> list[str]:
    """Compare the tokenizer's ids with the embedding's rows; take out special tokens that transformers invented.

    A tokenizer's class has default special tokens, which transformers adds where the vocabulary lacks them: after the
    last row of the embedding. Where nothing uses them they are taken out, so that their text is text like any other.
    Every other token without a row is refused: somebody added it and forgot the model.

    Args:
        folder: the model's folder.
        tokenizer: a fast Hugging Face tokenizer; changed in place where tokens are taken out.
        needed: ids of the special tokens that the task uses beside those that the tokenizer puts around a text.

    Returns:
        The texts of the tokens that were taken out.

    Raises:
        ExportError: tokens without a row in the embedding, which texts or the task may use.
    """
    rows = folder.vocab_size
    outside = {text: index for text, index in tokenizer.get_vocab().items() if not 0 <= index < rows}
    if not outside:
        return []
    with reading(f"cannot use the tokenizer in {folder.path}", _FILES_HINT):
        used = {*needed, *tokenizer("a")["input_ids"], *tokenizer("a", "a")["input_ids"]}
    added = tokenizer.added_tokens_decoder
    roles = {getattr(tokenizer, role) for role in _ROLES} | ({tokenizer.pad_token} if folder.gguf_file else set())
    invented = [
        text
        for text, index in outside.items()
        if index in added
        and added[index].special
        and index not in used
        and (folder.gguf_file is not None or text in roles)
    ]
    kept = sorted((index, text) for text, index in outside.items() if text not in invented)
    if kept:
        shown = ", ".join(f"{text!r} ({index})" for index, text in kept[:_SHOWN])
        raise ExportError(
            f"the tokenizer in {folder.path} has {len(kept)} tokens that the model has no embedding for, whose "
            f"vocabulary is {rows} tokens: {shown}" + (f" and {len(kept) - _SHOWN} more" if kept[_SHOWN:] else ""),
            "enlarge the model: model.resize_token_embeddings(len(tokenizer)), train the new rows and save it; or use "
            "the tokenizer that came with the model (to pad, an existing token will do)",
        )
    _take_out(tokenizer, {outside[text] for text in invented}, set(invented))
    return sorted(invented)


def _take_out(tokenizer: Any, ids: set[int], texts: set[str]) -> None:
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] not in ids]
    for role in (*_ROLES, "pad_token"):
        if getattr(tokenizer, role) in texts:
            setattr(tokenizer, role, None)
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(content))  # noqa: SLF001 transformers has no call for it
