"""Writes the training graphs of a bundle, one a level."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import onnx
import torch

from edge_runtime.bundle.layers import LAYER_FIELD
from edge_runtime.bundle.manifest import Graph, GraphInput, GraphOutput
from edge_runtime.engines.golden import training_layers
from export.errors import ExportError
from export.graphs.onnx_levels import Assembler, TwoLayers
from export.graphs.onnx_pieces import dimension_names, shape_of, to_onnx
from export.model.build import eager, example_batch, size_bounds, sizes
from export.model.lora import layer_of
from export.trace.gradients import active_layers, lift_training, requiring_gradients, trace_training, trained_parameters

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from edge_runtime.bundle.layout import Parameter
    from export.bundle.graph_writer import GraphWriter
    from export.model.build import ExportModel
    from export.source.folder import ModelFolder
    from export.trace.gradients import LiftedTraining

_TRACED_LAYERS = 2
_NUMBER = re.compile(r"(?<=\.layer\.)\d+(?=\.)|(?<=\.layers\.)\d+(?=\.)")
DTYPES = {torch.float32: "float32", torch.int64: "int64"}


def level_counts(shares: Sequence[float], n_layers: int) -> list[int]:
    """Return the numbers of active layers that shares of a model's layers are, ascending, at least one layer each.

    Raises:
        ExportError: a share is not above 0 and at most 1.
    """
    for share in shares:
        if not 0 < share <= 1:
            raise ExportError(
                f"--levels {share}: shares of active layers are above 0, at most 1", "as in: 1.0,0.5,0.33"
            )
    return sorted({max(1, round(share * n_layers)) for share in shares})


def check_alike(folder: ModelFolder, parameters: Sequence[Parameter]) -> None:
    """Check that any layer can take any slot.

    Raises:
        ExportError: some layers attend otherwise than others, or are not trained like others.
    """
    kinds = set(getattr(folder.config, "layer_types", None) or [])
    if len(kinds) > 1:
        raise ExportError(
            f"--levels: layers of several kinds ({', '.join(sorted(kinds))}) cannot take each other's place",
            "export without --levels",
        )
    trained = [{template(p.name) for p in parameters if p.layer == layer} for layer in range(folder.layers)]
    for layer, names in enumerate(trained):
        if not names or names != trained[0]:
            raise ExportError(
                f"--levels: layer {layer} is not trained like the others, so they cannot take each other's place",
                "leave out --lora-layers, so that all layers have LoRA",
            )


def template(name: str) -> str:
    """Return a layer's tensor's name with the layer's number left out."""
    return _NUMBER.sub(LAYER_FIELD, name, count=1)


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


def golden_gradients(
    model: ExportModel,
    folder: ModelFolder,
    parameters: Sequence[Parameter],
    state: Mapping[str, torch.Tensor],
    level: int,
    batch: dict[str, torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return loss and gradients of golden.training_layers as PyTorch gives them: a scalar, and the whole layout.

    Entries of absent layers are 0. The model runs as it was loaded, not as it is traced for training graphs.
    """
    active = training_layers(level, folder.layers)
    there = [p for p in parameters if p.layer in active or not 0 <= p.layer < folder.layers]
    trained = trained_parameters(model, {state[p.name].data_ptr() for p in there})
    with (
        active_layers(model.peft_model, active, folder.layers),
        requiring_gradients(trained),
        torch.enable_grad(),
    ):
        loss, _ = eager(model, batch)
        found = dict(zip([t.data_ptr() for t in trained], torch.autograd.grad(loss, trained), strict=True))
    flat = torch.zeros(parameters[-1].stop)
    for p in there:
        flat[p.offset : p.stop] = found[state[p.name].data_ptr()].flatten()
    return loss.detach(), flat
