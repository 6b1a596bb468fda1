"""Decides in which file, and under which name, each tensor of a bundle's graphs lies; collects the base weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from safetensors.torch import save_file

from edge_runtime.bundle.base import BLOCKS, SCALES, ZERO_POINTS
from edge_runtime.bundle.layers import LAYER_FIELD
from export.model.address import address_of
from export.model.names import hugging_face_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import torch

    from edge_runtime.bundle.layout import Parameter
    from edge_runtime.bundle.manifest import GraphInput, InputRole
    from export.model.address import Address
    from export.model.blocks import Blocks, BlockShape


class Place(NamedTuple):
    """Where the data of a graph's input lies: its role, and its name in that role's file (see manifest.GraphInput)."""

    role: InputRole
    source: str


@dataclass(frozen=True)
class BaseWeights:
    """All base weights that a bundle's graphs read, by name. Only ``WeightTable.close`` makes them.

    Attributes:
        tensors: the weights that the model computes with.
        blocks: those that are stored in blocks.
    """

    tensors: Mapping[str, torch.Tensor]
    blocks: Mapping[str, Blocks]

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(tensor.numel() for tensor in self.tensors.values())

    def write(self, path: Path) -> None:
        """Write the weights as safetensors, once each."""
        tensors = {name: tensor.contiguous() for name, tensor in self.tensors.items() if name not in self.blocks}
        for name, blocks in self.blocks.items():
            tensors[name + BLOCKS], tensors[name + SCALES] = blocks.data, blocks.scales
            tensors[name + ZERO_POINTS] = blocks.zero_points
        save_file(tensors, path, metadata={"format": "pt"})


class WeightTable:
    """The place of every tensor that a bundle's graphs read.

    Describing a graph's inputs places its tensors, and only placed base weights get into the bundle. So every graph is
    written first; then ``close`` returns the base weights, after which the table places no further ones.

    Args:
        names: the name of each tensor of the adapter (in full mode: of the model), by the address of its data.
        parameters: the layout of the trained tensors.
        blocks: the blocks of each quantised base weight, by the address of its data; None: there are none.
    """

    def __init__(
        self,
        names: Mapping[Address, str],
        parameters: Sequence[Parameter],
        blocks: Mapping[Address, Blocks] | None = None,
    ) -> None:
        self._names = names
        self._trained = {parameter.name for parameter in parameters}
        self._weights: dict[str, torch.Tensor] = {}
        self._weight_names: dict[Address, str] = {}
        self._frozen: dict[str, torch.Tensor] = {}
        self._blocks = blocks or {}
        self._closed = False

    @property
    def trained(self) -> dict[Address, str]:
        """The name of each trained tensor, by the address of its data."""
        return {address: name for address, name in self._names.items() if name in self._trained}

    @property
    def frozen_shapes(self) -> dict[str, list[int]]:
        """The shape of each placed tensor that is not trained, by its name in its file."""
        return {name: list(tensor.shape) for name, tensor in (*self._weights.items(), *self._frozen.items())}

    def place(self, tensor: torch.Tensor, parameter: str) -> Place:
        """Return the place of a tensor; a base weight that has none yet gets one.

        Args:
            tensor: a tensor that shares the data of a parameter of the model.
            parameter: its name in a program. A tied weight has several; it keeps the first one that is asked for.

        Raises:
            RuntimeError: the table is closed, and no graph has read the tensor before.
        """
        address = address_of(tensor)
        if address in self._names:
            name = self._names[address]
            if name in self._trained:
                return Place("trainable", name)
            self._frozen[name] = tensor
            return Place("frozen", name)
        if address not in self._weight_names:
            if self._closed:
                raise RuntimeError(
                    f"{parameter} is read by a graph that was written after the base weights were closed"
                )
            name = hugging_face_name(parameter)
            self._weight_names[address] = name
            self._weights[name] = tensor
        return Place("weight", self._weight_names[address])

    def close(self) -> BaseWeights:
        """Return the base weights that the graphs read, and refuse to place further ones."""
        self._closed = True
        return BaseWeights(dict(self._weights), self._placed_blocks())

    def _placed_blocks(self) -> dict[str, Blocks]:
        names = self._weight_names.items()
        return {name: self._blocks[address] for address, name in names if address in self._blocks}

    def in_blocks(self, inputs: Sequence[GraphInput]) -> dict[str, BlockShape]:
        """Return the shapes of the quantised weights among a graph's inputs, by the input's name.

        Args:
            inputs: inputs with places; a tensor with a slot counts as that of the layer with the slot's number.
        """
        placed = self._placed_blocks()
        slots = {i.name: i.source.replace(LAYER_FIELD, str(i.slot)) for i in inputs if i.role == "weight"}
        return {name: placed[source].shape for name, source in slots.items() if source in placed}
