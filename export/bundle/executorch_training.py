"""Writes the training graph of a level for ExecuTorch; see training_graphs.py for those of ONNX Runtime.

Each level is traced and differentiated by itself, a dropout level with the first layers in place of any others.
Recompute and rescale, which the assembler adds to ONNX graphs, do not exist here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edge_runtime.bundle.levels import file_part, run_layers, trained_layers
from edge_runtime.bundle.manifest import Graph, GraphInput, GraphOutput
from export.errors import ExportError
from export.graphs.executorch_pieces import PieceSizes, cut_program, fixed, planned_sizes
from export.model.names import layer_of, template
from export.trace.batches import dimension_names, dtype_of, shape_of, sizes, traced_batch
from export.trace.gradients import lift_training, trace_training

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from edge_runtime.bundle.levels import Level
    from export.bundle.lowering import Lowering
    from export.bundle.weight_table import WeightTable
    from export.graphs.executorch_pieces import Piece
    from export.model.address import Address
    from export.model.build import ExportModel
    from export.trace.gradients import LiftedTraining


def write_training(model: ExportModel, level: Level, table: WeightTable, lowering: Lowering) -> Graph:
    """Write the training graph of a level; return what the manifest says about it.

    Args:
        model: the model, whose layers training_graphs.TrainingGraphs has found alike; it is restored afterwards.
        level: the level.
        table: the places of the tensors.
        lowering: where the graph goes, and how large its batches may be.

    Raises:
        ExportError: torch.export cannot differentiate the model, or ExecuTorch cannot lower the graph.
    """
    active = run_layers(level, model.folder.layers)
    trained = _trained(table, active - trained_layers(level))
    training = lift_training(trace_training(model, active, trained), list(sizes(model.task)))
    lifted = training.lifted
    batch, bounds = planned_sizes(model.task, traced_batch(model), lowering.max_batch)
    fakes = {item.name: item.value for item in lifted.inputs}
    piece_sizes = PieceSizes(fakes, dimension_names(lifted, sizes(model.task)), bounds)
    piece = cut_program(lifted, ["loss", *training.gradients], [])
    file = f"graphs/train_{file_part(level)}.pte"
    try:
        lowering.write(file, piece, lifted.examples(batch), piece_sizes)
    except ExportError as error:
        raise ExportError(
            f"the training graph of level {level}: {error.what}", "leave out --levels, or use --runtime onnx"
        ) from error
    return Graph(
        kind="train",
        runtime="executorch",
        file=file,
        split=None,
        inputs=_describe_inputs(training, piece, piece_sizes, table),
        outputs=[GraphOutput("loss", "float32", []), *_describe_gradients(training, piece_sizes.names, table)],
        level=level,
        bounds={name: high for name, (_, high) in bounds.items()},
    )


def _trained(table: WeightTable, below: int) -> AbstractSet[Address]:
    """Return the addresses of the trained tensors that do not belong to one of the layers below a number."""
    names = ((address, layer_of(name)) for address, name in table.trained.items())
    return {address for address, layer in names if layer is None or layer >= below}


def _describe_inputs(
    training: LiftedTraining, piece: Piece, piece_sizes: PieceSizes, table: WeightTable
) -> list[GraphInput]:
    by_name, state = {item.name: item for item in training.lifted.inputs}, training.lifted.state
    inputs = []
    for name in piece.inputs:
        item = by_name[name]
        shape, dtype = piece_sizes.shape(name), dtype_of(item.value)
        if item.kind == "batch":
            described = GraphInput(name, dtype, shape, "batch", item.source)
        else:
            role, source = table.place(state[item.source], item.source)
            described = GraphInput(name, dtype, shape, role, *_slotted(source))
        inputs.append(fixed(described, piece_sizes.bounds))
    return inputs


def _describe_gradients(training: LiftedTraining, names: dict[Any, str], table: WeightTable) -> list[GraphOutput]:
    lifted = training.lifted
    outputs = []
    for name, target in training.gradients.items():
        source = table.place(lifted.state[target], target).source
        outputs.append(GraphOutput(name, "float32", shape_of(lifted.outputs[name], names), *_slotted(source)))
    return outputs


def _slotted(source: str) -> tuple[str, int | None]:
    """Return a tensor's source and slot: the first layers are traced, so that a layer's number is its slot."""
    slot = layer_of(source)
    return (source, None) if slot is None else (template(source), slot)
