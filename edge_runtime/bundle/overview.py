"""What a bundle is, in values that people compare: model, task, graphs, sizes, needs.

It reads the manifest and, where there is a decode graph, decode.json.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import msgspec

from edge_runtime.bundle.behind import BEHIND_FILE
from edge_runtime.bundle.decode import DECODE_FILE, Decode, find_decode
from edge_runtime.bundle.layout import total_size
from edge_runtime.bundle.stack import STACK_FILE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.bundle.manifest import Manifest

_GROUPS = ("weights", "adapter", "tokenizer", "graphs", "golden vectors", "other files")
_OF_FILES = ("files", "graphs", "parameters")
"""Fields of the manifest that describe files; overview and differences say them file by file."""


def group_of(path: str, manifest: Manifest) -> str:
    """Return what a file of a bundle is for, one of ``weights``, ``adapter``, ``tokenizer``, ``graphs``, …."""
    if path == manifest.weights_file:
        return "weights"
    if path == manifest.adapter_file or path.startswith("adapter/"):
        return "adapter"
    if path == manifest.tokenizer_file or path.startswith("tokenizer/"):
        return "tokenizer"
    if path.startswith("graphs/") or path in (DECODE_FILE, STACK_FILE, BEHIND_FILE):
        return "graphs"
    return "golden vectors" if path == manifest.golden.file else "other files"


def trained_behind_layers(manifest: Manifest) -> Literal["head", "final norm"] | None:
    """Return what a bundle trains behind the last layer beside LoRA; None: nothing, or it trains every weight."""
    behind = [p.name for p in manifest.parameters if p.layer == manifest.model.layers and "lora_" not in p.name]
    if manifest.train == "full" or not behind:
        return None
    return "head" if manifest.task.kind == "classify-head" else "final norm"


def decode_overview(bundle: Bundle) -> dict[str, Any] | None:
    """Return what a bundle's decode graph is: file, sizes in bytes, positions; None where it has none to be used here.

    Raises:
        BundleError: its description is missing or damaged.
    """
    decode = find_decode(bundle.path, bundle.manifest)
    if not isinstance(decode, Decode):
        return None
    return {
        "file": decode.graph.file,
        "runtime": decode.graph.runtime,
        "size_bytes": sum(bundle.manifest.file(name).size_bytes for name in (decode.graph.file, DECODE_FILE)),
        "cache_bytes_a_token": decode.cache_bytes_a_token,
        "positions": decode.positions,
    }


def overview(bundle: Bundle) -> dict[str, Any]:
    """Return what a bundle is. Sizes are bytes; ``graphs`` has one entry for each graph, in the manifest's order."""
    manifest = bundle.manifest
    sizes = dict.fromkeys(_GROUPS, 0)
    for entry in manifest.files:
        sizes[group_of(entry.path, manifest)] += entry.size_bytes
    return {
        "bundle_sha256": bundle.sha256,
        "format_version": manifest.format_version,
        "created_by": manifest.created_by,
        "model": msgspec.to_builtins(manifest.model),
        "task": msgspec.to_builtins(manifest.task),
        "train": manifest.train,
        "lora": msgspec.to_builtins(manifest.lora),
        "trained_behind_layers": trained_behind_layers(manifest),
        "trainable_parameters": total_size(manifest.parameters),
        "vocab_size": manifest.vocab_size,
        "splits": list(manifest.splits),
        "levels": list(manifest.levels),
        "runtimes": list(manifest.runtimes),
        "needs": msgspec.to_builtins(manifest.needs),
        "base": msgspec.to_builtins(manifest.base),
        "tokenizer_sha256": manifest.file(manifest.tokenizer_file).sha256,
        "weights_sha256": manifest.file(manifest.weights_file).sha256,
        "files": len(manifest.files),
        "size_bytes": sum(sizes.values()),
        "size_bytes_by_group": {group: size for group, size in sizes.items() if size},
        "graphs": [
            {
                "kind": graph.kind,
                "split": graph.split,
                "level": graph.level,
                "runtime": graph.runtime,
                "file": graph.file,
                "size_bytes": manifest.file(graph.file).size_bytes,
            }
            for graph in manifest.graphs
        ],
        "decode": decode_overview(bundle),
    }


def differences(one: Manifest, other: Manifest) -> dict[str, list[dict[str, Any]]]:
    """Return in what two bundles differ; no entry: in nothing.

    Args:
        one: the manifest of a bundle.
        other: that of another one.

    Returns:
        ``fields``: the manifest's fields with different values, ``name``, ``a``, ``b``; a field that a bundle lacks is
        None. Every group of files, ``weights`` to ``other files``: its files with other content, ``file``, ``change``
        (``changed``, ``only in A``, ``only in B``), ``a`` and ``b``, their bytes.
    """
    found: dict[str, list[dict[str, Any]]] = {"fields": []}
    a, b = _fields(one), _fields(other)
    for name in sorted(a.keys() | b.keys()):
        if a.get(name) != b.get(name):
            found["fields"].append({"name": name, "a": a.get(name), "b": b.get(name)})
    left, right = ({entry.path: entry for entry in manifest.files} for manifest in (one, other))
    for path in sorted(left.keys() | right.keys()):
        mine, its = left.get(path), right.get(path)
        if mine is not None and its is not None and mine.sha256 == its.sha256:
            continue
        change = "only in B" if mine is None else "only in A" if its is None else "changed"
        sizes = {"a": mine and mine.size_bytes, "b": its and its.size_bytes}
        group = group_of(path, other if mine is None else one)
        found.setdefault(group, []).append({"file": path, "change": change} | sizes)
    return {group: entries for group, entries in found.items() if entries}


def _fields(manifest: Manifest) -> dict[str, Any]:
    """Return the manifest's values by dotted names, and the descriptions of graphs and parameters by theirs."""
    table = msgspec.to_builtins(manifest)
    flat = dict(_flattened({name: value for name, value in table.items() if name not in _OF_FILES}, ""))
    for graph in table["graphs"]:
        flat[f"graphs[{graph['file']}]"] = {name: value for name, value in graph.items() if name != "file"}
    for parameter in table["parameters"]:
        flat[f"parameters[{parameter['name']}]"] = {n: value for n, value in parameter.items() if n != "name"}
    return flat


def _flattened(table: Mapping[str, Any], before: str) -> list[tuple[str, Any]]:
    flat = []
    for name, value in table.items():
        if isinstance(value, dict) and value:
            flat += _flattened(value, f"{before}{name}.")
        else:
            flat.append((before + name, value))
    return flat
