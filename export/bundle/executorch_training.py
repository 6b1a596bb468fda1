"""Training graphs for ExecuTorch, one a level: see training_graphs for what they are.

Each level is traced and differentiated for itself: the first so many layers stand for any others. Layers are neither
computed again nor rescaled, which the assembler does to ONNX graphs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_runtime.bundle.manifest import Graph, GraphInput, GraphOutput
from export.bundle.training_graphs import DTYPES
from export.errors import ExportError
from export.graphs.executorch_pieces import default_cache, fixed, lower_piece, piece, planned_sizes
from export.model.names import layer_of, template
from export.trace.batches import dimension_names, example_batch, shape_of, sizes
from export.trace.gradients import lift_training, trace_training

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from export.bundle.graph_writer import GraphWriter
    from export.model.build import ExportModel
    from export.source.folder import ModelFolder


def write_training(
    model: ExportModel,
    folder: ModelFolder,
    addresses: set[int],
    writer: GraphWriter,
    level: int,
    bundle: Path,
    max_batch: int,
    progress: Callable[[str], None],
) -> Graph:
    """Write the training graph of a level; return what the manifest says about it.

    Args:
        model: the model; as it was afterwards.
        folder: where it came from; training_graphs.TrainingGraphs has checked that its layers are alike.
        addresses: of the data of what is trained.
        writer: what has written the other graphs; it knows the tensors' names.
        level: number of active layers.
        bundle: the bundle's folder.
        max_batch: most rows of a batch.
        progress: told what is being done.

    Raises:
        ExportError: it cannot be differentiated or lowered.
    """
    joint = trace_training(model, folder, level, addresses)
    training = lift_training(joint, list(sizes(model.task)))
    lifted, state = training.lifted, {name: tensor.detach() for name, tensor in joint.state_dict.items()}
    names = dimension_names(lifted, sizes(model.task))
    batch, bounds = planned_sizes(
        model.task, example_batch(model.task, int(folder.config.vocab_size), rows=3, tokens=10), max_batch
    )
    by_name = {item.name: item for item in lifted.inputs}
    cut = piece(lifted, ["loss", *training.gradients], [])
    examples = {
        item.name: state[item.source] if item.kind == "parameter" else batch[item.source] for item in lifted.inputs
    }
    try:
        made = lower_piece(
            cut, examples, {item.name: item.value for item in lifted.inputs}, bounds, names, default_cache()
        )
    except ExportError as error:
        raise ExportError(
            f"the training graph of level {level}: {error.what}", "export without --levels, or with --runtime onnx"
        ) from error
    file = f"graphs/train_{level}.pte"
    (bundle / file).write_bytes(made.data)
    how = "lowered before" if made.cached else f"lowered in {made.seconds:.1f} s"
    progress(f"{file}: {how}, {made.delegates} blocks for XNNPACK")
    inputs = []
    for name in cut.inputs:
        item = by_name[name]
        role, source = (
            ("batch", item.source) if item.kind == "batch" else writer.role_of(state[item.source], item.source)
        )
        slot = None if role == "batch" else layer_of(source)
        source = source if slot is None else template(source)
        shape = shape_of(item.value, names)
        inputs.append(fixed(GraphInput(name, DTYPES[item.value.dtype], shape, role, source, slot), bounds))  # type: ignore[arg-type]
    outputs = [GraphOutput("loss", "float32", [])]
    for name, target in training.gradients.items():
        source = writer.role_of(state[target], target)[1]
        slot = layer_of(source)
        shape = shape_of(lifted.outputs[name], names)
        outputs.append(GraphOutput(name, "float32", shape, source if slot is None else template(source), slot))
    return Graph(
        kind="train",
        runtime="executorch",
        file=file,
        split=None,
        inputs=inputs,
        outputs=outputs,
        level=level,
        bounds={name: high for name, (_, high) in bounds.items()},
    )
