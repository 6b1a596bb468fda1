"""Writes the graphs of a bundle and the weights that they share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import onnx
import torch
from safetensors.torch import save_file

from edge_runtime.bundle.manifest import Graph, GraphInput, GraphOutput, output_names
from export.errors import ExportError
from export.graphs.onnx_pieces import piece, rows_read, to_onnx
from export.model.names import hugging_face_name
from export.trace.batches import dimension_names, example_batch, shape_of, size_bounds, sizes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch.export import ExportedProgram

    from edge_runtime.bundle.layout import Parameter
    from edge_runtime.bundle.manifest import GraphKind
    from export.model.build import ExportModel
    from export.source.folder import ModelFolder
    from export.trace.lift import Lifted

_DTYPES = {torch.float32: "float32", torch.int64: "int64", torch.bool: "bool"}


class GraphWriter:
    """Converts a lifted program once and writes its pieces.

    Args:
        model: the model.
        folder: where it came from.
        program: what was traced.
        lifted: the same with its weights as inputs.
        parameters: the layout of the trained tensors.
        names: the name of each tensor of the adapter, or of the whole model, by the address of its data.

    Raises:
        ExportError: the task does not compute with a trained tensor, or the converter failed.
    """

    def __init__(
        self,
        model: ExportModel,
        folder: ModelFolder,
        program: ExportedProgram,
        lifted: Lifted,
        parameters: list[Parameter],
        names: dict[int, str],
    ) -> None:
        self._lifted = lifted
        self._layer = {parameter.name: parameter.layer for parameter in parameters}
        self._adapter_names = names
        self._state = {name: tensor.detach() for name, tensor in program.state_dict.items()}
        self._dimensions = dimension_names(lifted, sizes(model.task))
        self._weights: dict[str, torch.Tensor] = {}
        self._frozen: dict[str, torch.Tensor] = {}
        self._name_of_data: dict[int, str] = {}
        used = {self._state[item.source].data_ptr() for item in lifted.inputs if item.kind == "parameter"}
        unused = sorted(n for address, n in self._adapter_names.items() if n in self._layer and address not in used)
        if unused:
            raise ExportError(
                f"{unused[0]} would be trained, but the task does not compute with it", "choose other --lora-targets"
            )
        self._answers = output_names(model.task.kind)
        examples = example_batch(model.task, int(folder.config.vocab_size), rows=3, tokens=10)
        self._task = model.task
        self._examples = [self._state[i.source] if i.kind == "parameter" else examples[i.source] for i in lifted.inputs]
        self._model = to_onnx(
            lifted,
            self._examples,
            size_bounds(model.task),
            self._dimensions,
        )

    @property
    def weight_count(self) -> int:
        """Number of frozen base parameters that the graphs use."""
        return sum(tensor.numel() for tensor in self._weights.values())

    @property
    def shapes(self) -> dict[str, list[int]]:
        """Shape of each frozen tensor that was asked for, by its name in its file."""
        return {name: list(tensor.shape) for name, tensor in (*self._weights.items(), *self._frozen.items())}

    def write(self, splits: list[int], bundle: Path) -> list[Graph]:
        """Write front and back of each split, and predict; return what the manifest says about them.

        Raises:
            ExportError: a back needs weights of layers below its split: the cut is not clean.
        """
        graphs = []
        for split in splits:
            boundary = self._lifted.boundaries[split]
            front = self._write_piece("front", split, boundary, [], bundle)
            back = self._write_piece("back", split, ["loss", *self._answers], boundary, bundle)
            allowed = {self._role(parameter)[1] for parameter in self._lifted.back_parameters[split]}
            used = {i.source for i in back.inputs if i.role in ("weight", "frozen", "trainable")}
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
            graphs += [front, back]
        return [*graphs, self._write_piece("predict", None, self._answers, [], bundle)]

    def _write_piece(
        self, kind: GraphKind, split: int | None, outputs: list[str], stops: list[str], bundle: Path
    ) -> Graph:
        file = f"graphs/{kind}.onnx" if split is None else f"graphs/{kind}_{split}.onnx"
        made = piece(self._model, outputs, stops)
        onnx.save(made, bundle / file)
        inputs = []
        for value in made.graph.input:
            described = self._describe_input(value.name)
            rows = rows_read(made.graph, value.name) if described.role == "trainable" else None
            inputs.append(msgspec.structs.replace(described, rows=rows))
        return Graph(
            kind=kind,
            runtime="onnxruntime",
            file=file,
            split=split,
            inputs=inputs,
            outputs=[
                GraphOutput(name, _DTYPES[fake.dtype], shape_of(fake, self._dimensions))  # type: ignore[arg-type]
                for name, fake in ((name, self._lifted.outputs[name]) for name in outputs)
            ],
        )

    def _describe_input(self, name: str) -> GraphInput:
        item = next((item for item in self._lifted.inputs if item.name == name), None)
        fake = self._lifted.outputs[name] if item is None else item.value
        role, source = ("boundary", name) if item is None else (item.kind, item.source)
        if role == "parameter":
            role, source = self._role(source)
        return GraphInput(name, _DTYPES[fake.dtype], shape_of(fake, self._dimensions), role, source)  # type: ignore[arg-type]

    def write_executorch(
        self, graphs: list[Graph], bundle: Path, max_batch: int, progress: Callable[[str], None]
    ) -> list[Graph]:
        """Write for ExecuTorch what has been written for ONNX Runtime; return what the manifest says about it.

        Args:
            graphs: what ``write`` gave.
            bundle: the bundle's folder.
            max_batch: most rows of a batch: ExecuTorch plans its memory for it.
            progress: told what is being done.

        Raises:
            ExportError: a graph cannot be lowered.
        """
        from export.graphs import executorch_pieces  # noqa: PLC0415 an extra of its own

        examples = {item.name: tensor for item, tensor in zip(self._lifted.inputs, self._examples, strict=True)}
        examples, bounds = executorch_pieces.planned_sizes(self._task, examples, max_batch)
        with torch.no_grad():
            results = self._lifted.module(*(examples[item.name] for item in self._lifted.inputs))
        examples |= dict(zip(self._lifted.outputs, results, strict=True))
        fakes = self._lifted.outputs | {item.name: item.value for item in self._lifted.inputs}
        written = []
        for graph in graphs:
            stops = [] if graph.kind == "front" else self._lifted.boundaries.get(graph.split or -1, [])
            cut = executorch_pieces.piece(self._lifted, [output.name for output in graph.outputs], stops)
            made = executorch_pieces.lower_piece(
                cut, examples, fakes, bounds, self._dimensions, executorch_pieces.default_cache()
            )
            file = graph.file.removesuffix(".onnx") + ".pte"
            (bundle / file).write_bytes(made.data)
            how = "lowered before" if made.cached else f"lowered in {made.seconds:.1f} s"
            progress(f"{file}: {how}, {made.delegates} blocks for XNNPACK")
            rows = {tensor.name: tensor.rows for tensor in graph.inputs}
            inputs = [
                msgspec.structs.replace(
                    executorch_pieces.fixed(self._describe_input(name), bounds), rows=rows.get(name)
                )
                for name in cut.inputs
            ]
            written.append(
                msgspec.structs.replace(
                    graph,
                    runtime="executorch",
                    file=file,
                    inputs=inputs,
                    outputs=[executorch_pieces.fixed(output, bounds) for output in graph.outputs],
                    bounds={name: high for name, (_, high) in bounds.items()},
                )
            )
        return written

    def _role(self, parameter: str) -> tuple[str, str]:
        """Return the role of a parameter and its name in its file; a tied weight has one name."""
        return self.role_of(self._state[parameter], parameter)

    def role_of(self, tensor: torch.Tensor, parameter: str) -> tuple[str, str]:
        """Return the role of a tensor and its name in its file.

        Args:
            tensor: its data is a parameter's.
            parameter: its name in a program; a weight is called by the first one that was asked for.
        """
        address = tensor.data_ptr()
        if address in self._adapter_names:
            name = self._adapter_names[address]
            if name in self._layer:
                return "trainable", name
            self._frozen[name] = tensor
            return "frozen", name
        if address not in self._name_of_data:
            name = hugging_face_name(parameter)
            self._name_of_data[address] = name
            self._weights[name] = tensor
        return "weight", self._name_of_data[address]

    def write_weights(self, path: Path) -> None:
        """Write the base weights that the graphs use, once each."""
        tensors = {name: tensor.contiguous() for name, tensor in self._weights.items()}
        save_file(tensors, path, metadata={"format": "pt"})


def _trained_by(graph: Graph) -> set[str]:
    return {tensor.source for tensor in graph.inputs if tensor.role == "trainable"}
