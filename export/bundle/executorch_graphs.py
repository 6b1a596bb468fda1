"""Writes a bundle's graphs for ExecuTorch beside those for ONNX Runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import torch

from export.bundle.executorch_training import write_training
from export.bundle.graph_writer import describe_input
from export.graphs.executorch_pieces import PieceSizes, cut_program, fixed, planned_sizes
from export.trace.batches import dimension_names, sizes, traced_batch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_runtime.bundle.manifest import Graph
    from export.bundle.lowering import Lowering
    from export.bundle.weight_table import WeightTable
    from export.model.build import ExportModel
    from export.trace.lift import Lifted


def write_executorch(
    model: ExportModel, lifted: Lifted, graphs: Sequence[Graph], table: WeightTable, lowering: Lowering
) -> list[Graph]:
    """Write for ExecuTorch what has been written for ONNX Runtime; return what the manifest says about it.

    Args:
        model: the model; it is traced again for each level.
        lifted: its lifted program.
        graphs: the graphs for ONNX Runtime.
        table: the places of the tensors.
        lowering: where the graphs go, and how large their batches may be.

    Raises:
        ExportError: ExecuTorch cannot lower a graph.
    """
    forward = _write_forward(model, lifted, [graph for graph in graphs if graph.kind != "train"], table, lowering)
    made = [
        # A graph that recomputes its layers keeps less than that of ExecuTorch, which never does.
        msgspec.structs.replace(
            write_training(model, graph.level, table, lowering),
            activations=None if graph.recomputes else graph.activations,
        )
        for graph in graphs
        if graph.level is not None
    ]
    return [*forward, *made]


def _write_forward(
    model: ExportModel, lifted: Lifted, graphs: Sequence[Graph], table: WeightTable, lowering: Lowering
) -> list[Graph]:
    """Lower front, back and predict; see write_executorch."""
    examples, bounds = planned_sizes(model.task, lifted.examples(traced_batch(model)), lowering.max_batch)
    with torch.no_grad():
        results = lifted.module(*(examples[item.name] for item in lifted.inputs))
    examples |= dict(zip(lifted.outputs, results, strict=True))
    fakes = lifted.outputs | {item.name: item.value for item in lifted.inputs}
    piece_sizes = PieceSizes(fakes, dimension_names(lifted, sizes(model.task)), bounds)
    written = []
    for graph in graphs:
        stops = [] if graph.kind == "front" else lifted.boundaries.get(graph.split or -1, [])
        piece = cut_program(lifted, [output.name for output in graph.outputs], stops)
        file = graph.file.removesuffix(".onnx") + ".pte"
        lowering.write(file, piece, examples, piece_sizes)
        rows = {tensor.name: tensor.rows for tensor in graph.inputs}
        described = (describe_input(name, lifted, table, piece_sizes.names) for name in piece.inputs)
        written.append(
            msgspec.structs.replace(
                graph,
                runtime="executorch",
                file=file,
                inputs=[msgspec.structs.replace(fixed(i, bounds), rows=rows.get(i.name)) for i in described],
                outputs=[fixed(output, bounds) for output in graph.outputs],
                bounds={name: high for name, (_, high) in bounds.items()},
            )
        )
    return written
