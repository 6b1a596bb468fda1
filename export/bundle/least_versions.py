"""The least versions of libraries that read a bundle: of the runtimes from the graphs, of tokenizers from its file.

ONNX Runtime's table is measured: each release was given a graph of every opset and IR version. It agrees with the
version matrix of ONNX Runtime's documentation as far as that goes. What a bundle needs is never less than what Covey
itself needs on a device.
"""

from __future__ import annotations

import json
from importlib import metadata
from typing import TYPE_CHECKING, Any

import onnx

from edge_runtime.bundle.needs import Needs, is_older

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from edge_runtime.bundle.base import BaseKind
    from edge_runtime.bundle.manifest import Graph

DEFAULT_DOMAIN = "ai.onnx"
LEAST_ONNXRUNTIME = "1.18"
"""What pyproject.toml asks of a device."""
LEAST_TOKENIZERS = "0.20"
"""What pyproject.toml asks of a device."""
ONNXRUNTIME_READS = (
    ("1.14", 18, 8),
    ("1.15", 19, 9),
    ("1.17", 20, 9),
    ("1.18", 21, 10),
    ("1.21", 22, 10),
    ("1.23", 23, 11),
    ("1.24", 25, 13),
    ("1.25", 26, 13),
)
"""Releases of ONNX Runtime that read more than the one before: release, highest opset, highest IR version."""

MATMULNBITS_READS: dict[BaseKind, str] = {"int4": "1.18", "int8": "1.23"}
"""The first release of ONNX Runtime whose MatMulNBits takes such blocks as inputs and as constants; measured."""

_SINCE = {"FixedLength": "0.21.2"}
"""Parts of tokenizer.json that are younger than LEAST_TOKENIZERS, and the version that first reads them; measured."""
_KNOWN = frozenset(
    [
        "BPE",
        "BPEDecoder",
        "BertNormalizer",
        "BertPreTokenizer",
        "BertProcessing",
        "ByteFallback",
        "ByteLevel",
        "CTC",
        "CharDelimiterSplit",
        "Digits",
        "Fuse",
        "Lowercase",
        "Metaspace",
        "NFC",
        "NFD",
        "NFKC",
        "NFKD",
        "Nmt",
        "Precompiled",
        "Prepend",
        "Punctuation",
        "Replace",
        "RobertaProcessing",
        "Sequence",
        "Split",
        "Strip",
        "StripAccents",
        "TemplateProcessing",
        "UnicodeScripts",
        "Unigram",
        "Whitespace",
        "WhitespaceSplit",
        "WordLevel",
        "WordPiece",
    ]
)
"""Parts of tokenizer.json that LEAST_TOKENIZERS reads; measured."""
_PARTS = ("normalizer", "pre_tokenizer", "model", "post_processor", "decoder")
_NESTED = ("normalizers", "pretokenizers", "processors", "decoders")


def least_versions(bundle: Path, graphs: Sequence[Graph], tokenizer_file: str, base: BaseKind | None = None) -> Needs:
    """Return what a bundle needs, from its files.

    Args:
        bundle: the bundle's folder; the manifest need not be there yet.
        graphs: the graphs.
        tokenizer_file: path of tokenizer.json in the bundle.
        base: what frozen weights are quantised to; None: they are float32.
    """
    ir_version, opsets = formats_of(bundle / graph.file for graph in graphs if graph.runtime == "onnxruntime")
    runtimes = {"onnxruntime": least_onnxruntime(ir_version, opsets)}
    if base is not None and is_older(runtimes["onnxruntime"], MATMULNBITS_READS[base]):
        runtimes["onnxruntime"] = MATMULNBITS_READS[base]
    if any(graph.runtime == "executorch" for graph in graphs):
        runtimes["executorch"] = _numbers_of(metadata.version("executorch"))
    tokenizer = json.loads((bundle / tokenizer_file).read_text(encoding="utf-8"))
    return Needs(runtimes, least_tokenizers(tokenizer), ir_version, opsets)


def formats_of(paths: Iterator[Path]) -> tuple[int, dict[str, int]]:
    """Return the highest IR version among ONNX files, and the highest version of each operator set by its domain."""
    ir_version, opsets = 0, dict[str, int]()
    for path in paths:
        model = onnx.load(path, load_external_data=False)
        ir_version = max(ir_version, model.ir_version)
        used = list(model.opset_import) + [opset for function in model.functions for opset in function.opset_import]
        for opset in used:
            domain = opset.domain or DEFAULT_DOMAIN
            opsets[domain] = max(opset.version, opsets.get(domain, 0))
    return ir_version, dict(sorted(opsets.items()))


def least_onnxruntime(ir_version: int, opsets: Mapping[str, int]) -> str:
    """Return the least release of ONNX Runtime that reads graphs; where the table ends, the one that is installed.

    The installed release is known to read them: the export has run them on it.
    """
    opset = opsets.get(DEFAULT_DOMAIN, 0)
    for release, most_opset, most_ir in ONNXRUNTIME_READS:
        if opset <= most_opset and ir_version <= most_ir:
            return LEAST_ONNXRUNTIME if is_older(release, LEAST_ONNXRUNTIME) else release
    return _numbers_of(metadata.version("onnxruntime"))


def least_tokenizers(tokenizer: Mapping[str, Any]) -> str:
    """Return the least version of tokenizers that reads a tokenizer.json; for parts that are not known, the installed.

    Args:
        tokenizer: the decoded file.
    """
    least = LEAST_TOKENIZERS
    for kind in _kinds(tokenizer):
        since = _SINCE.get(kind) or (None if kind in _KNOWN else _numbers_of(metadata.version("tokenizers")))
        if since is not None and is_older(least, since):
            least = since
    return least


def _kinds(tokenizer: Mapping[str, Any]) -> Iterator[str]:
    """Yield the type of every part, and of the parts within sequences."""
    waiting = [tokenizer.get(part) for part in _PARTS]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            if isinstance(part.get("type"), str):
                yield part["type"]
            waiting += [inner for name in _NESTED for inner in part.get(name) or []]


def _numbers_of(version: str) -> str:
    """Return a version without what follows its numbers."""
    kept = []
    for number in version.split("+", maxsplit=1)[0].split(".")[:4]:
        if not number.isdigit():
            break
        kept.append(number)
    return ".".join(kept)
