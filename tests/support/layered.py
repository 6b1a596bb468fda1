"""Bundles with levels whose engine is a bowl: the whole protocol with layer dropout, without training graphs."""

from __future__ import annotations

import functools
import shutil
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from edge_runtime.bundle.folder import Bundle, open_bundle
from edge_runtime.bundle.layers import layer_slices
from edge_runtime.bundle.layout import front_size, total_size
from edge_runtime.bundle.levels import Level, run_layers, trained_layers
from edge_runtime.bundle.manifest import MANIFEST_FILE, Graph, GraphInput, GraphOutput, format_version_of
from edge_runtime.bundle.manifest_file import encode_manifest
from edge_runtime.engines.quadratic import LayeredQuadraticEngine

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edge_runtime.bundle.manifest import Runtime

LEVELS: list[Level] = [1, 2, 3]


def with_levels(bundle: Bundle, folder: Path, levels: Sequence[Level] = LEVELS) -> Bundle:
    """Copy a bundle and describe training graphs in its manifest; their file is another graph's, it is never run."""
    shutil.copytree(bundle.path, folder)
    manifest = bundle.manifest
    front = manifest.graph("front", manifest.splits[0])
    weights = [tensor for tensor in front.inputs if tensor.role == "weight"]
    layer_0 = [p for p in manifest.parameters if p.layer == 0]
    head = [p for p in manifest.parameters if p.layer == manifest.model.layers]

    def graph(level: Level) -> Graph:
        run = run_layers(level, manifest.model.layers)
        slots = [
            (f"{p.name}.{slot}", p.shape, p.name.replace(".0.", ".{layer}."), slot)
            for slot in range(run)
            for p in layer_0
        ]
        rest = [(p.name, p.shape, p.name, None) for p in head]
        tensors: list[tuple[str, list[Any], str, int | None]] = [*slots, *rest]
        inputs = [
            GraphInput(name, "float32", shape, "trainable", source, slot) for name, shape, source, slot in tensors
        ]
        below = run - trained_layers(level)
        outputs = [
            GraphOutput(f"grad.{name}", "float32", shape, source, slot)
            for name, shape, source, slot in tensors
            if slot is None or slot >= below
        ]
        loss = GraphOutput("loss", "float32", [])
        return Graph("train", "onnxruntime", front.file, None, [*weights, *inputs], [loss, *outputs], level)

    graphs = [*(g for g in manifest.graphs if g.kind != "train"), *(graph(level) for level in levels)]
    version = format_version_of(levels)
    changed = msgspec.structs.replace(manifest, format_version=version, levels=list(levels), graphs=graphs)
    (folder / MANIFEST_FILE).write_bytes(encode_manifest(changed))
    return open_bundle(folder)


@functools.cache
def _bowl(size: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    rng = np.random.Generator(np.random.PCG64(3))
    return np.diag(rng.uniform(0.5, 1.5, size)), rng.normal(scale=0.1, size=size)


class BowlEngines:
    """Makes bowls in place of a bundle's engines: see engine.MakesEngines."""

    runtime: Runtime = "onnxruntime"

    def make_engine(self, bundle: Bundle, split: int) -> LayeredQuadraticEngine:
        """Both kinds of engine: front and back at the split, and gradients."""
        parameters = bundle.manifest.parameters
        hessian, optimum = _bowl(total_size(parameters))
        slices = layer_slices(bundle.manifest)
        return LayeredQuadraticEngine(hessian, optimum, front_size(parameters, split), slices, bundle.manifest.levels)

    def make_training_engine(self, bundle: Bundle) -> LayeredQuadraticEngine:
        """The engine of backprop devices."""
        return self.make_engine(bundle, bundle.manifest.splits[0])
