"""The decode graph of a causal model: ``decode.json``, which says how the graph is run one token after another.

The graph takes new tokens, and the keys and values of all tokens before them; it gives the logits of the next token,
and keys and values with those of the new tokens added. The manifest lists ``decode.json`` and the graph as files, so
their hashes are checked; it does not describe them, so a Covey that does not know them uses the bundle as before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import msgspec

from edge_runtime.bundle.manifest import CAUSAL_LM, Graph
from edge_runtime.bundle.side_file import NewerFile, SideFile
from edge_runtime.errors import BundleError
from edge_runtime.values import Strict

if TYPE_CHECKING:
    from pathlib import Path

    from edge_runtime.bundle.manifest import Manifest, Runtime

DECODE_FILE = "decode.json"
DECODE_GRAPH_FILE = "graphs/decode.onnx"
DECODE_VERSION = 1
LOGITS = "logits"
PAST = "past"
"""The name of the dynamic size of a cached tensor: tokens before those of a run."""
NEW_TOKENS = "tokens"
"""The name of the dynamic size of ``input_ids``."""
_FLOAT32_BYTES = 4
_AGAIN = "export the bundle again with: covey export"


class Decode(Strict, frozen=True):
    """The content of ``decode.json``.

    Attributes:
        format_version: DECODE_VERSION.
        graph: the graph, on ONNX Runtime. Of role ``batch`` is ``input_ids``, int64, (1, tokens); of role ``boundary``
            are the keys and values so far, float32, (1, heads, past, size), whose source is the output that takes its
            place in the next run. The first output is ``logits``, float32, (1, vocabulary), those after the last token.
        positions: the most tokens that the model has positions for.
    """

    format_version: int
    graph: Graph
    positions: Annotated[int, msgspec.Meta(ge=2, le=2**30)]

    @property
    def cache_shapes(self) -> dict[str, tuple[int, int]]:
        """Heads and size of a head of each cached tensor, by the name of the graph's output."""
        shapes = {}
        for tensor in self.graph.inputs:
            if tensor.role != "boundary":
                continue
            one, heads, past, size = tensor.shape if len(tensor.shape) == 4 else (0, 0, 0, 0)
            if one != 1 or past != PAST or not isinstance(heads, int) or not isinstance(size, int):
                raise BundleError(f"{DECODE_FILE}: {tensor.name} has shape {tensor.shape}", _AGAIN)
            shapes[tensor.source] = (heads, size)
        return shapes

    @property
    def cache_bytes_a_token(self) -> int:
        """Bytes of the keys and values of one token, in all layers."""
        return sum(_FLOAT32_BYTES * math.prod(shape) for shape in self.cache_shapes.values())


@dataclass(frozen=True)
class NoDecode:
    """Why prompts are continued without a cache; the reason is a clause: ``the bundle has no …``."""

    reason: str


_DECODE = SideFile(DECODE_FILE, DECODE_VERSION, _AGAIN)


def encode_decode(decode: Decode) -> bytes:
    """Return the bytes of ``decode.json``."""
    return _DECODE.encode(decode)


def find_decode(folder: Path, manifest: Manifest, runtime: Runtime = "onnxruntime") -> Decode | NoDecode:
    """Return a bundle's decode graph, or why a runtime has none.

    Args:
        folder: the bundle's folder.
        manifest: its manifest.
        runtime: what would run the graph.

    Raises:
        BundleError: ``decode.json`` is listed, but missing or not valid.
        StorageError: descriptors or memory are short.
    """
    listed = {entry.path for entry in manifest.files}
    if manifest.task.kind != CAUSAL_LM or DECODE_FILE not in listed:
        if manifest.base is not None:
            return NoDecode("the bundle has no decode graph: there is none for a quantised base")
        return NoDecode("the bundle has no decode graph (covey export --decode writes one)")
    if runtime != "onnxruntime":
        return NoDecode(f"the bundle has a decode graph for onnxruntime only, and the engine is {runtime}")
    decode = _DECODE.read(folder, Decode)
    if isinstance(decode, NewerFile):
        return NoDecode(
            f"the bundle's decode graph has format version {decode.version}, this Covey reads {DECODE_VERSION}"
        )
    _check(decode, listed)
    return decode


def _check(decode: Decode, listed: set[str]) -> None:
    """Check what the types cannot say."""
    graph, outputs = decode.graph, [output.name for output in decode.graph.outputs]
    if graph.file not in listed:
        raise BundleError(f"{DECODE_FILE} names {graph.file}, which the manifest does not list", _AGAIN)
    if graph.runtime != "onnxruntime" or outputs[:1] != [LOGITS]:
        raise BundleError(f"{DECODE_FILE} describes no decode graph", _AGAIN)
    batch = [tensor.source for tensor in graph.inputs if tensor.role == "batch"]
    carried = [tensor.source for tensor in graph.inputs if tensor.role == "boundary"]
    if batch != ["input_ids"] or sorted(carried) != sorted(outputs[1:]) or len(set(outputs)) != len(outputs):
        raise BundleError(f"{DECODE_FILE}: the cache that goes in is not the one that comes out", _AGAIN)
    if not decode.cache_shapes:
        raise BundleError(f"{DECODE_FILE}: the graph has no cache", _AGAIN)
