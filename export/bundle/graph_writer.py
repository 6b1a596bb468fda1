"""Writes front, back and predict of a bundle for ONNX Runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import onnx

from edge_runtime.bundle.base import BLOCKS, SCALES, ZERO_POINTS
from edge_runtime.bundle.manifest import Graph, GraphInput, GraphOutput, output_names
from export.bundle.block_inputs import describe_blocks
from export.errors import ExportError
from export.graphs.block_products import use_blocks
from export.graphs.onnx_pieces import cut_onnx, rows_read, to_onnx
from export.model.address import address_of
from export.trace.batches import dimension_names, dtype_of, shape_of, size_bounds, sizes, traced_batch

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edge_runtime.bundle.base import Arithmetic
    from edge_runtime.bundle.layout import Parameter
    from edge_runtime.bundle.manifest import GraphKind
    from export.bundle.weight_table import WeightTable
    from export.model.build import ExportModel
    from export.trace.lift import Lifted


def describe_input(name: str, lifted: Lifted, table: WeightTable, names: dict[Any, str]) -> GraphInput:
    """Return the manifest's description of a piece's input; a parameter is placed.

    Args:
        name: a parameter, a tensor of the batch or a boundary tensor of the lifted program.
        lifted: the lifted program.
        table: the places of the tensors.
        names: the names of the symbolic sizes.
    """
    item = next((item for item in lifted.inputs if item.name == name), None)
    if item is None:
        value = lifted.outputs[name]
        return GraphInput(name, dtype_of(value), shape_of(value, names), "boundary", name)
    shape, dtype = shape_of(item.value, names), dtype_of(item.value)
    if item.kind == "batch":
        return GraphInput(name, dtype, shape, "batch", item.source)
    return GraphInput(name, dtype, shape, *table.place(lifted.state[item.source], item.source))


class GraphWriter:
    """Converts a lifted program once and writes its pieces.

    Args:
        model: the model.
        lifted: its lifted program.
        parameters: the layout of the trained tensors.
        table: the places of the tensors.
        arithmetic: what products with quantised weights are computed in.

    Raises:
        ExportError: the task does not compute with a trained tensor, or torch.onnx cannot convert the program.
    """

    def __init__(
        self,
        model: ExportModel,
        lifted: Lifted,
        parameters: Sequence[Parameter],
        table: WeightTable,
        arithmetic: Arithmetic = "float32",
    ) -> None:
        self._lifted, self._table, self._arithmetic = lifted, table, arithmetic
        self._layer = {parameter.name: parameter.layer for parameter in parameters}
        self._dimensions = dimension_names(lifted, sizes(model.task))
        self._answers = output_names(model.task.kind)
        used = {address_of(lifted.state[item.source]) for item in lifted.inputs if item.kind == "parameter"}
        unused = sorted(name for address, name in table.trained.items() if address not in used)
        if unused:
            raise ExportError(
                f"{unused[0]} would be trained, but the task does not compute with it", "choose other --lora-targets"
            )
        examples = lifted.examples(traced_batch(model))
        self._model = to_onnx(lifted, list(examples.values()), size_bounds(model.task), self._dimensions)

    def write(self, splits: Sequence[int], bundle: Path) -> list[Graph]:
        """Write front and back of every split, and predict; return what the manifest says about them.

        Args:
            splits: index of the back block's first layer, for each split.
            bundle: the bundle's folder.

        Raises:
            ExportError: a back reads weights of layers below its split, or a trained tensor is on the wrong side of it.
        """
        graphs = []
        for split in splits:
            boundary = self._lifted.boundaries[split]
            front = self._write_piece("front", split, boundary, [], bundle)
            back = self._write_piece("back", split, ["loss", *self._answers], boundary, bundle)
            self._check_sides(split, front, back)
            graphs += [front, back]
        return [*graphs, self._write_piece("predict", None, self._answers, [], bundle)]

    def _check_sides(self, split: int, front: Graph, back: Graph) -> None:
        """Check that each block reads only tensors of its own side of a split."""
        state = self._lifted.state
        allowed = {self._table.place(state[name], name).source for name in self._lifted.back_parameters[split]}
        bound = [i for i in back.inputs if i.role in ("weight", "constant", "frozen", "trainable")]
        used = {i.source.removesuffix(BLOCKS) for i in bound if not i.source.endswith((SCALES, ZERO_POINTS))}
        if not used <= allowed:
            raise ExportError(
                f"the back block at split {split} needs {sorted(used - allowed)[:3]}", "choose another --split"
            )
        below = {name for name, layer in self._layer.items() if layer < split}
        misplaced = sorted((_trained_by(front) - below) | (_trained_by(back) & below))
        if misplaced:
            raise ExportError(
                f"{misplaced[0]} is on the wrong side of split {split}", "choose other --lora-targets or --split"
            )

    def _write_piece(
        self, kind: GraphKind, split: int | None, outputs: list[str], stops: list[str], bundle: Path
    ) -> Graph:
        file = f"graphs/{kind}.onnx" if split is None else f"graphs/{kind}_{split}.onnx"
        made = cut_onnx(self._model, outputs, stops)
        inputs = []
        for value in made.graph.input:
            described = describe_input(value.name, self._lifted, self._table, self._dimensions)
            rows = rows_read(made.graph, value.name) if described.role in ("trainable", "weight") else None
            # Of a frozen tensor, rows that the graph lists are nobody's business; those of tokens give the vocabulary.
            known = rows if described.role == "trainable" or rows == "input_ids" else None
            inputs.append(msgspec.structs.replace(described, rows=known))
        quantised = self._table.in_blocks(inputs)
        onnx.save(use_blocks(made, quantised, self._arithmetic, "constant").model, bundle / file)
        fakes = {name: self._lifted.outputs[name] for name in outputs}
        return Graph(
            kind=kind,
            runtime="onnxruntime",
            file=file,
            split=split,
            inputs=describe_blocks(inputs, quantised, "constant"),
            outputs=[GraphOutput(n, dtype_of(fake), shape_of(fake, self._dimensions)) for n, fake in fakes.items()],
        )


def _trained_by(graph: Graph) -> set[str]:
    return {tensor.source for tensor in graph.inputs if tensor.role == "trainable"}
