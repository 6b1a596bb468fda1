"""Reads and writes ``manifest.json``: decoding, checking, encoding, and the hash that names the bundle.

Every reader of a manifest comes through here, so a manifest that has been read is consistent.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

import msgspec

from edge_runtime.bundle.layers import LAYER_FIELD, source_of
from edge_runtime.bundle.layout import Parameter, check_layout
from edge_runtime.bundle.manifest import (
    CAUSAL_LM,
    FORMAT_VERSION,
    MANIFEST_FILE,
    Graph,
    GraphInput,
    GraphOutput,
    Manifest,
)
from edge_runtime.errors import BundleError
from edge_runtime.files.versioned import VersionedFormat

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_FORMAT = VersionedFormat(
    "the manifest",
    FORMAT_VERSION,
    msgspec.json.decode,
    BundleError,
    hint="export the bundle again with: covey export",
    newer_hint="upgrade Covey on this machine",
    field="format_version",
    field_name="format version",
)
_PATH = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")


def check_training_graph(graph: Graph, parameters: Sequence[Parameter], layers: int) -> None:
    """Check that a training graph fits the layout, whichever layers are bound to its slots.

    Raises:
        BundleError: its level or a slot is out of range, or a trainable tensor of a layer is not in the layout.
    """
    level = graph.level
    if level is None or not 1 <= level <= layers:
        raise BundleError(f"{graph.file}: level {level} of a model with {layers} layers", "export the bundle again")
    shapes = {parameter.name: parameter.shape for parameter in parameters}
    trained: list[GraphInput | GraphOutput] = [tensor for tensor in graph.inputs if tensor.role == "trainable"]
    gradients: list[GraphInput | GraphOutput] = [output for output in graph.outputs if output.source is not None]
    for tensor in (*graph.inputs, *gradients):
        if tensor.slot is not None and not (0 <= tensor.slot < level and LAYER_FIELD in (tensor.source or "")):
            raise BundleError(
                f"{graph.file}: {tensor.name} has no place in slot {tensor.slot}", "export the bundle again"
            )
    for tensor in (*trained, *gradients):
        for layer in range(layers):
            name = source_of(tensor, [layer] * level)
            if shapes.get(name) != tensor.shape:
                raise BundleError(
                    f"{graph.file}: {name} {tensor.shape} is not in the layout", "export the bundle again"
                )
    if {(tensor.source, tensor.slot) for tensor in trained} != {(output.source, output.slot) for output in gradients}:
        raise BundleError(f"{graph.file}: not one gradient for each trainable tensor", "export the bundle again")
    if not graph.outputs or graph.outputs[0].name != "loss":
        raise BundleError(f"{graph.file}: its first output is not the loss", "export the bundle again")


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the bytes of manifest.json."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"


def bundle_sha256(manifest_bytes: bytes) -> str:
    """Return the bundle's name."""
    return hashlib.sha256(manifest_bytes).hexdigest()


def decode_manifest(data: bytes) -> Manifest:
    """Read and check a manifest.

    Raises:
        BundleError: not JSON, another format version, wrong types, unsafe or missing paths, a broken layout.
    """
    manifest: Manifest = _FORMAT.read(data, Manifest)
    _check(manifest)
    return manifest


def read_manifest(bundle: Path) -> tuple[Manifest, str]:
    """Read the manifest of a bundle folder.

    Returns:
        The manifest, and the bundle's sha256.

    Raises:
        BundleError: there is no manifest (an interrupted export), or it is not valid.
    """
    try:
        data = (bundle / MANIFEST_FILE).read_bytes()
    except FileNotFoundError as error:
        what = "no such folder" if not bundle.is_dir() else f"no {MANIFEST_FILE} in it (an interrupted export?)"
        raise BundleError(f"{bundle} is not a bundle: {what}", "make one with: covey export") from error
    except OSError as error:
        raise BundleError(f"cannot read {bundle / MANIFEST_FILE}: {error.strerror}", "check its permissions") from error
    return decode_manifest(data), bundle_sha256(data)


def _check(manifest: Manifest) -> None:
    _check_paths(manifest)
    check_layout(manifest.parameters)
    manifest.graph("predict")
    if not manifest.splits:
        raise BundleError("the manifest lists no split", "export with --split")
    _check_graphs(manifest)
    if manifest.task.kind != CAUSAL_LM and len(manifest.task.labels) < 2:
        raise BundleError("the task has fewer than two labels", "export with --labels A,B")


def _are_rows(rows: list[int], shape: list[int | str]) -> bool:
    return bool(shape) and isinstance(shape[0], int) and all(0 <= row < shape[0] for row in rows)


def _check_graphs(manifest: Manifest) -> None:
    for runtime in manifest.runtimes:
        for split in manifest.splits:
            manifest.graph("front", split, runtime)
            manifest.graph("back", split, runtime)
    for runtime in {"onnxruntime", *(graph.runtime for graph in manifest.graphs if graph.kind == "train")}:
        if manifest.levels != manifest.levels_for(runtime):
            raise BundleError("the manifest's levels are not those of its training graphs", "export the bundle again")
    trainable = {parameter.name for parameter in manifest.parameters}
    for graph in manifest.graphs:
        if graph.kind == "train":
            check_training_graph(graph, manifest.parameters, manifest.model.layers)
            continue
        for tensor in graph.inputs:
            if tensor.role == "trainable" and tensor.source not in trainable:
                raise BundleError(f"{graph.file}: {tensor.source} is not in the layout", "export the bundle again")
            if isinstance(tensor.rows, list) and not _are_rows(tensor.rows, tensor.shape):
                raise BundleError(f"{graph.file}: {tensor.source} has no rows {tensor.rows}", "export the bundle again")


def _check_paths(manifest: Manifest) -> None:
    paths = [entry.path for entry in manifest.files]
    for path in paths:
        if not _PATH.fullmatch(path) or path == MANIFEST_FILE:
            raise BundleError(f"the manifest lists an unsafe path: {path!r}", "do not use this bundle")
    if len(set(paths)) != len(paths):
        raise BundleError("the manifest lists a file twice", "export the bundle again")
    named = [manifest.weights_file, manifest.adapter_file, manifest.tokenizer_file, manifest.golden.file]
    for path in named + [graph.file for graph in manifest.graphs]:
        manifest.file(path)
