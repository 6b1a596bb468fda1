"""Writes the training graphs of a bundle for ONNX Runtime, one per level."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx

from edge_runtime.bundle.behind import BEHIND_FILE, BEHIND_VERSION, Behind, encode_behind
from edge_runtime.bundle.layers import LAYER_FIELD
from edge_runtime.bundle.levels import file_part, kind_of, run_layers, trained_layers
from edge_runtime.bundle.manifest import Activations, Graph, GraphInput, GraphOutput
from edge_runtime.files.atomic import write_atomically
from export.bundle.block_inputs import describe_blocks
from export.errors import ExportError
from export.graphs.activations import peak_bytes
from export.graphs.block_products import use_blocks
from export.graphs.layer_parts import LayerParts, TwoLayers
from export.graphs.onnx_levels import BOUNDARY, assemble_level
from export.graphs.onnx_pieces import to_onnx
from export.model.names import layer_of, template
from export.trace.batches import dimension_names, dtype_of, longest_batch, shape_of, size_bounds, sizes, traced_batch
from export.trace.gradients import lift_training, trace_training

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from edge_runtime.bundle.layout import Parameter
    from edge_runtime.bundle.levels import Level
    from export.bundle.weight_table import WeightTable
    from export.graphs.block_products import InBlocks
    from export.graphs.onnx_levels import LevelGraph
    from export.model.blocks import BlockShape
    from export.model.build import ExportModel

_TRACED_LAYERS = 2
_MORE_ROWS = 15
"""Rows over which the memory of a further row is averaged."""


class TrainingGraphs:
    """The training graphs of a model: traced and converted once, written for any level.

    Args:
        model: the model.
        parameters: the layout of the trained tensors.
        table: the places of the tensors; front, back and predict have been written with it.

    Raises:
        ExportError: torch cannot differentiate or convert the model, or its layers are not alike.
    """

    def __init__(self, model: ExportModel, parameters: Sequence[Parameter], table: WeightTable) -> None:
        self._n_layers = n_layers = model.folder.layers
        self._table = table
        self._max_tokens = model.task.max_tokens
        joint = trace_training(model, min(_TRACED_LAYERS, n_layers), table.trained.keys())
        self._training = training = lift_training(joint, list(sizes(model.task)))
        lifted = training.lifted
        self._dimensions = dimension_names(lifted, sizes(model.task))
        self._places = {
            item.name: table.place(lifted.state[item.source], item.source)
            for item in lifted.inputs
            if item.kind == "parameter"
        }
        self._gradient_of = {
            output: table.place(lifted.state[target], target).source for output, target in training.gradients.items()
        }
        trained_shapes = {parameter.name: parameter.shape for parameter in parameters}
        self._check_shapes(table.frozen_shapes | trained_shapes, n_layers)
        examples = lifted.examples(traced_batch(model))
        converted = to_onnx(lifted, list(examples.values()), size_bounds(model.task), self._dimensions)
        layers = {name: layer_of(place.source) for name, place in self._places.items()}
        self._parts = LayerParts(
            TwoLayers(
                converted,
                {name: layer for name, layer in layers.items() if layer is not None},
                {output: layer_of(source) for output, source in self._gradient_of.items()},
                [training.hidden[layer] for layer in sorted(training.hidden)],
                [training.hidden_gradients[layer] for layer in sorted(training.hidden_gradients)],
            )
        )

    def _check_shapes(self, shapes: Mapping[str, list[int]], n_layers: int) -> None:
        """Check that every layer has each tensor of the traced layers, in the same shape."""
        by_name = {item.name: item for item in self._training.lifted.inputs}
        for name, place in self._places.items():
            if layer_of(place.source) is None:
                continue
            for layer in range(n_layers):
                source = template(place.source).replace(LAYER_FIELD, str(layer))
                if shapes.get(source) != [int(side) for side in by_name[name].value.shape]:
                    raise ExportError(
                        f"--levels: layer {layer} has no {source} like that of the other layers", "leave out --levels"
                    )

    def write(self, level: Level, bundle: Path, *, recompute: bool, rescale: bool) -> Graph:
        """Write the graph of a level; return what the manifest says about it.

        Args:
            level: the level.
            bundle: the bundle's folder.
            recompute: whether layers are computed again instead of keeping their activations.
            rescale: whether the graph of a dropout level takes a factor on what each layer adds to its input; at a top
                level no layer is ever absent, so that there is nothing to make up for.
        """
        made = self._assembled(level, 0, recompute=recompute, rescale=rescale)
        return self._save(made, level, bundle, f"graphs/train_{file_part(level)}.onnx", recompute=recompute)

    def write_behind(
        self, levels: Sequence[Level], hidden: Mapping[int, GraphOutput], bundle: Path, *, recompute: bool
    ) -> list[Graph]:
        """Write the graphs of top levels that begin behind a split, and ``behind.json``; return their descriptions.

        Args:
            levels: the bundle's levels.
            hidden: by split, the hidden state that its front gives.
            bundle: the bundle's folder.
            recompute: see ``write``.
        """
        graphs = []
        for level in levels:
            for split, state in hidden.items():
                if kind_of(level) != "top" or not 0 < split <= self._n_layers - trained_layers(level):
                    continue
                made = self._assembled(level, split, recompute=recompute, rescale=False)
                file = f"graphs/train_{file_part(level)}_behind_{split}.onnx"
                graph = self._save(made, level, bundle, file, recompute=recompute, behind=(split, state))
                graphs.append(graph)
        if graphs:
            write_atomically(bundle / BEHIND_FILE, encode_behind(Behind(BEHIND_VERSION, graphs)))
        return graphs

    def _assembled(self, level: Level, behind: int, *, recompute: bool, rescale: bool) -> LevelGraph:
        return assemble_level(
            self._parts,
            run_layers(level, self._n_layers),
            trained=trained_layers(level),
            behind=behind,
            recompute=recompute,
            rescale=rescale and kind_of(level) == "drop",
        )

    def _save(
        self,
        made: LevelGraph,
        level: Level,
        bundle: Path,
        file: str,
        *,
        recompute: bool,
        behind: tuple[int, GraphOutput] | None = None,
    ) -> Graph:
        inputs = self._describe_inputs(made, None if behind is None else behind[1])
        quantised = self._table.in_blocks(inputs)
        # Slots take the weights of any layer, so these are inputs, and their products are those of float32.
        in_blocks = use_blocks(made.model, quantised, "float32", "input")
        onnx.save(in_blocks.model, bundle / file)
        return Graph(
            kind="train",
            runtime="onnxruntime",
            file=file,
            split=None if behind is None else behind[0],
            inputs=describe_blocks(inputs, quantised, "weight"),
            outputs=[GraphOutput("loss", "float32", []), *self._describe_gradients(made)],
            level=level,
            recomputes=recompute,
            activations=self._activations(in_blocks, made.values, quantised),
        )

    def _activations(
        self, made: InBlocks, values: Mapping[str, onnx.ValueInfoProto], quantised: Mapping[str, BlockShape]
    ) -> Activations:
        """Return the memory of a level's values with one row of the longest length, and for each further row.

        A product with blocks dequantises them into memory of its own, which counts as if it were always there.
        """
        graph = made.model.graph
        results = [value.name for value in graph.output]
        products = {product: values[total] for product, total in made.sums.items() if total in values}
        all_values = {**values, **products, **made.values}
        inside = max((4 * shape.rows * shape.columns for shape in quantised.values()), default=0)

        def bytes_for(rows: int) -> int:
            return inside + peak_bytes(graph.node, results, all_values, longest_batch(self._max_tokens, rows))

        first = bytes_for(1)
        return Activations(first, -(-(bytes_for(1 + _MORE_ROWS) - first) // _MORE_ROWS))

    def _describe_inputs(self, made: LevelGraph, hidden: GraphOutput | None) -> list[GraphInput]:
        by_name = {item.name: item for item in self._training.lifted.inputs}
        inputs = []
        for value in made.model.graph.input:
            original, slot = made.inputs[value.name]
            if original == BOUNDARY and hidden is not None:
                inputs.append(GraphInput(value.name, hidden.dtype, hidden.shape, "boundary", hidden.name))
                continue
            if original not in by_name:
                inputs.append(GraphInput(value.name, "float32", [1], "scale", LAYER_FIELD, slot))
                continue
            item = by_name[original]
            shape, dtype = shape_of(item.value, self._dimensions), dtype_of(item.value)
            if item.kind == "batch":
                inputs.append(GraphInput(value.name, dtype, shape, "batch", item.source))
                continue
            role, source = self._places[original]
            inputs.append(GraphInput(value.name, dtype, shape, role, _of_slot(source, slot), slot))
        return inputs

    def _describe_gradients(self, made: LevelGraph) -> list[GraphOutput]:
        outputs = []
        for value in made.model.graph.output[1:]:
            original, slot = made.outputs[value.name]
            shape = shape_of(self._training.lifted.outputs[original], self._dimensions)
            outputs.append(GraphOutput(value.name, "float32", shape, _of_slot(self._gradient_of[original], slot), slot))
        return outputs


def _of_slot(source: str, slot: int | None) -> str:
    return source if slot is None else template(source)
