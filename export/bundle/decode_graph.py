"""Writes the decode graph of a causal model, and ``decode.json`` beside the manifest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
import torch

from edge_runtime.bundle.decode import DECODE_FILE, DECODE_GRAPH_FILE, DECODE_VERSION, Decode, encode_decode
from edge_runtime.bundle.manifest import Graph, GraphInput, GraphOutput
from edge_runtime.files.atomic import write_atomically
from export.graphs.onnx_pieces import convert, cut_onnx
from export.source.architectures import longest_row
from export.trace.batches import dtype_of
from export.trace.decode import NO_DECODE_HINT, trace_decode

if TYPE_CHECKING:
    from pathlib import Path

    from export.bundle.weight_table import WeightTable
    from export.model.build import ExportModel
    from export.trace.decode import LiftedDecode


def write_decode(model: ExportModel, table: WeightTable, bundle: Path) -> Decode:
    """Write the graph for ONNX Runtime and its description.

    Args:
        model: a causal model.
        table: the places of the tensors, still open.
        bundle: the bundle's folder.

    Raises:
        ExportError: the step cannot be traced or converted.
    """
    step = trace_decode(model)
    automatic = torch.export.Dim.AUTO
    shapes = [
        {axis: automatic for axis, size in enumerate(step.sizes(item.name)) if isinstance(size, str)}
        for item in step.lifted.inputs
    ]
    whole = convert(step.lifted, list(step.examples.values()), shapes, NO_DECODE_HINT)
    outputs = list(step.lifted.outputs)
    made = cut_onnx(whole, outputs, [])
    onnx.save(made, bundle / DECODE_GRAPH_FILE)
    graph = Graph(
        kind="predict",
        runtime="onnxruntime",
        file=DECODE_GRAPH_FILE,
        split=None,
        inputs=[_describe(value.name, step, table) for value in made.graph.input],
        outputs=[GraphOutput(name, "float32", step.sizes(name)) for name in outputs],
    )
    decode = Decode(DECODE_VERSION, graph, longest_row(model.folder.config))
    write_atomically(bundle / DECODE_FILE, encode_decode(decode))
    return decode


def _describe(name: str, step: LiftedDecode, table: WeightTable) -> GraphInput:
    """Return the description of an input; a parameter is placed."""
    item = next(item for item in step.lifted.inputs if item.name == name)
    shape, dtype = step.sizes(name), dtype_of(item.value)
    if item.kind == "parameter":
        return GraphInput(name, dtype, shape, *table.place(step.lifted.state[item.source], item.source))
    if name in step.cache:
        return GraphInput(name, dtype, shape, "boundary", step.cache[name])
    return GraphInput(name, dtype, shape, "batch", name)
