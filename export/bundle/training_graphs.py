"""Writes the training graphs of a bundle, one a level."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
import torch

from edge_runtime.bundle.layers import LAYER_FIELD
from edge_runtime.bundle.manifest import Graph, GraphInput, GraphOutput
from export.errors import ExportError
from export.graphs.onnx_levels import Assembler, TwoLayers
from export.graphs.onnx_pieces import to_onnx
from export.model.names import layer_of, template
from export.trace.batches import dimension_names, example_batch, shape_of, size_bounds, sizes
from export.trace.gradients import lift_training, trace_training

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from edge_runtime.bundle.layout import Parameter
    from export.bundle.graph_writer import GraphWriter
    from export.model.build import ExportModel
    from export.source.folder import ModelFolder
    from export.trace.gradients import LiftedTraining

_TRACED_LAYERS = 2
DTYPES = {torch.float32: "float32", torch.int64: "int64"}


class TrainingGraphs:
    """The training graphs of a model: traced and converted once, written for any level.

    Args:
        model: the model.
        folder: where it came from.
        parameters: the layout of the trained tensors.
        addresses: of the data of what is trained.
        writer: what has written the other graphs; it knows the tensors' names.

    Raises:
        ExportError: the model cannot be differentiated or converted, or its layers are not alike.
    """

    def __init__(
        self,
        model: ExportModel,
        folder: ModelFolder,
        parameters: Sequence[Parameter],
        addresses: set[int],
        writer: GraphWriter,
    ) -> None:
        joint = trace_training(model, folder, min(_TRACED_LAYERS, folder.layers), addresses)
        self._folder = folder
        self._training: LiftedTraining = lift_training(joint, list(sizes(model.task)))
        lifted = self._training.lifted
        self._dimensions = dimension_names(lifted, sizes(model.task))
        state = {name: tensor.detach() for name, tensor in joint.state_dict.items()}
        self._sources = {
            item.name: writer.role_of(state[item.source], item.source) if item.kind == "parameter" else None
            for item in lifted.inputs
        }
        self._gradient_of = {
            output: writer.role_of(state[target], target)[1] for output, target in self._training.gradients.items()
        }
        self._check_shapes(parameters, writer.shapes)
        examples = example_batch(model.task, int(folder.config.vocab_size), rows=3, tokens=10)
        converted = to_onnx(
            lifted,
            [state[item.source] if item.kind == "parameter" else examples[item.source] for item in lifted.inputs],
            size_bounds(model.task),
            self._dimensions,
        )
        layers = {name: layer_of(role[1]) for name, role in self._sources.items() if role is not None}
        training = self._training
        self._assembler = Assembler(
            TwoLayers(
                converted,
                {name: layer for name, layer in layers.items() if layer is not None},
                {output: layer_of(source) for output, source in self._gradient_of.items()},
                [training.hidden[layer] for layer in sorted(training.hidden)],
                [training.hidden_gradients[layer] for layer in sorted(training.hidden_gradients)],
            )
        )

    def _check_shapes(self, parameters: Sequence[Parameter], frozen: Mapping[str, list[int]]) -> None:
        shapes = dict(frozen) | {parameter.name: parameter.shape for parameter in parameters}
        by_name = {item.name: item for item in self._training.lifted.inputs}
        for name, role in self._sources.items():
            if role is None or layer_of(role[1]) is None:
                continue
            for layer in range(self._folder.layers):
                source = template(role[1]).replace(LAYER_FIELD, str(layer))
                if shapes.get(source) != [int(side) for side in by_name[name].value.shape]:
                    raise ExportError(
                        f"--levels: layer {layer} has no {source} like the other layers'", "export without --levels"
                    )

    def write(self, level: int, bundle: Path, *, recompute: bool, rescale: bool) -> Graph:
        """Write the graph of a level; return what the manifest says about it."""
        file = f"graphs/train_{level}.onnx"
        made = self._assembler.level(level, recompute=recompute, rescale=rescale)
        onnx.save(made.model, bundle / file)
        by_name = {item.name: item for item in self._training.lifted.inputs}
        outputs = self._training.lifted.outputs
        inputs = []
        for value in made.model.graph.input:
            original, slot = made.inputs[value.name]
            if original not in by_name:
                inputs.append(GraphInput(value.name, "float32", [1], "scale", LAYER_FIELD, slot))
                continue
            item = by_name[original]
            role, source = self._sources[original] or ("batch", item.source)
            shape, dtype = shape_of(item.value, self._dimensions), DTYPES[item.value.dtype]
            source = source if slot is None else template(source)
            inputs.append(GraphInput(value.name, dtype, shape, role, source, slot))  # type: ignore[arg-type]
        gradients = []
        for value in made.model.graph.output[1:]:
            original, slot = made.outputs[value.name]
            source, shape = self._gradient_of[original], shape_of(outputs[original], self._dimensions)
            gradients.append(
                GraphOutput(value.name, "float32", shape, source if slot is None else template(source), slot)
            )
        return Graph(
            kind="train",
            runtime="onnxruntime",
            file=file,
            split=None,
            inputs=inputs,
            outputs=[GraphOutput("loss", "float32", []), *gradients],
            level=level,
            recomputes=recompute,
        )
