"""Writes the stack graphs of a bundle, back blocks for many adapters in one call, and ``stack.json``."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import onnx
import torch

from edge_runtime.bundle.manifest import Activations, Graph, GraphInput, GraphOutput
from edge_runtime.bundle.stack import (
    ADAPTERS,
    LOSSES,
    STACK,
    STACK_FILE,
    STACK_VERSION,
    StackGraph,
    Stacks,
    encode_stacks,
)
from edge_runtime.files.atomic import write_atomically
from export.bundle.graph_writer import describe_input
from export.graphs.activations import peak_bytes
from export.graphs.onnx_pieces import convert, cut_onnx
from export.trace.batches import dimension_names, shape_of, size_bounds, sizes, traced_batch
from export.trace.lift import LiftedInput
from export.trace.stack import MOST_TRACED, stack_back

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from edge_runtime.bundle.layout import Parameter
    from export.bundle.weight_table import WeightTable
    from export.model.build import ExportModel
    from export.trace.lift import Lifted
    from export.trace.stack import StackedBack

_TRACED_ADAPTERS = 4
_FURTHER_ROWS = 8


class StackGraphs:
    """Writes the stack graph of each split.

    Args:
        model: a model with a classification task.
        lifted: its lifted program.
        parameters: the layout of the trained tensors.
        state: the trained tensors by name, sharing the model's data.
        table: the places of the tensors, still open.
    """

    def __init__(
        self,
        model: ExportModel,
        lifted: Lifted,
        parameters: Sequence[Parameter],
        state: Mapping[str, torch.Tensor],
        table: WeightTable,
    ) -> None:
        self._model, self._lifted, self._table = model, lifted, table
        self._parameters, self._state = parameters, state
        self._dimensions = dimension_names(lifted, sizes(model.task))
        examples = lifted.examples(traced_batch(model))
        with torch.no_grad():
            values = lifted.module(*examples.values())
        self._examples = examples | dict(zip(lifted.outputs, values, strict=True))

    def write(self, splits: Sequence[int], bundle: Path) -> None:
        """Write a graph for each split, and the description of all.

        Raises:
            ExportError: the back block cannot be rewritten for many adapters, or converted.
        """
        graphs = [self._write(split, bundle) for split in splits]
        write_atomically(bundle / STACK_FILE, encode_stacks(Stacks(STACK_VERSION, graphs)))

    def _write(self, split: int, bundle: Path) -> StackGraph:
        file = f"graphs/back_stack_{split}.onnx"
        size = sum(p.size for p in self._parameters if p.layer >= split)
        back = stack_back(self._lifted, split, self._parameters, self._state)
        whole = self._convert(back, size)
        made = cut_onnx(whole, [LOSSES], [])
        onnx.save(made, bundle / file)
        inputs = [
            GraphInput(ADAPTERS, "float32", [STACK, size], "trainable", ADAPTERS)
            if value.name == ADAPTERS
            else describe_input(value.name, self._lifted, self._table, self._dimensions)
            for value in made.graph.input
        ]
        outputs = [GraphOutput(LOSSES, "float32", [STACK])]
        graph = Graph(kind="back", runtime="onnxruntime", file=file, split=split, inputs=inputs, outputs=outputs)
        return StackGraph(graph, self._activations(whole))

    def _convert(self, back: StackedBack, size: int) -> onnx.ModelProto:
        adapters = torch.zeros(_TRACED_ADAPTERS, size)
        inputs = back.lifted.inputs
        bounds = {**size_bounds(self._model.task), STACK: (1, MOST_TRACED)}
        dims = {name: torch.export.Dim(name, min=low, max=high) for name, (low, high) in bounds.items()}
        named: list[list[int | str]] = [[STACK, size], *(shape_of(item.value, self._dimensions) for item in inputs)]
        shapes = [{axis: dims[side] for axis, side in enumerate(shape) if isinstance(side, str)} for shape in named]
        first = LiftedInput(ADAPTERS, "batch", ADAPTERS, adapters)
        program = dataclasses.replace(back.lifted, inputs=[first, *inputs])
        return convert(program, [adapters, *(self._examples[item.name] for item in inputs)], shapes)

    def _activations(self, whole: onnx.ModelProto) -> Activations:
        """Return the memory of the graph's values with one row of the longest length, and for each further row."""
        graph = whole.graph
        values = {value.name: value for value in (*graph.value_info, *graph.output)}

        def bytes_for(rows: int, adapters: int) -> int:
            named = {"batch": rows, "tokens": self._model.task.max_tokens, STACK: adapters}
            return peak_bytes(graph.node, [LOSSES], values, named)

        first, more = bytes_for(1, 1), bytes_for(_FURTHER_ROWS, _TRACED_ADAPTERS)
        return Activations(first, -(-(more - first) // (_FURTHER_ROWS * _TRACED_ADAPTERS - 1)))
