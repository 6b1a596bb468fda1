"""Quantises frozen weights in blocks, and gives the model the weights that the blocks stand for.

After that the model itself is the exact reference of everything that is traced from it: PyTorch computes in float32
with the dequantised weights. The weights as they were are kept, to be compared with.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from edge_runtime.bundle.base import BITS
from export.errors import ExportError
from export.model.address import address_of
from export.model.names import layer_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from collections.abc import Set as AbstractSet

    from edge_runtime.bundle.base import BaseKind
    from export.model.address import Address

BLOCK_SIZE = 32
"""Weights of a row that share a scale and a zero point."""
_SHARES = (1.1, 1.05, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
"""Of a block's range, tried beside all of it: a narrower one cuts the largest values and rounds the others less."""


@dataclass(frozen=True)
class BlockShape:
    """The shape of a quantised weight: (rows, columns), and how its rows are divided into blocks."""

    rows: int
    columns: int
    bits: int
    block_size: int = BLOCK_SIZE

    @property
    def blocks(self) -> int:
        """Number of blocks of a row; the last one is filled up where the columns are no multiple of the block size."""
        return -(-self.columns // self.block_size)

    @property
    def block_bytes(self) -> int:
        """Bytes of a block."""
        return self.block_size * self.bits // 8

    @property
    def zero_point_bytes(self) -> int:
        """Bytes of the zero points of a row."""
        return -(-self.blocks * self.bits // 8)


@dataclass(frozen=True)
class Blocks:
    """A quantised weight.

    Attributes:
        shape: its shape.
        data: uint8, (rows, blocks, bytes of a block); of 4 bits, the lower half of a byte comes first.
        scales: float32, (rows, blocks).
        zero_points: uint8, (rows, bytes).
    """

    shape: BlockShape
    data: torch.Tensor
    scales: torch.Tensor
    zero_points: torch.Tensor

    def dequantised(self) -> torch.Tensor:
        """Return the weight that the blocks stand for: float32, (rows, columns)."""
        shape = self.shape
        whole = _unpacked(self.data, shape.bits).to(torch.float32)
        zero_points = _unpacked(self.zero_points, shape.bits)[:, : shape.blocks].to(torch.float32)
        values = (whole - zero_points[:, :, None]) * self.scales[:, :, None]
        return values.reshape(shape.rows, -1)[:, : shape.columns].contiguous()


def quantise(weight: torch.Tensor, bits: int, block_size: int = BLOCK_SIZE) -> Blocks:
    """Quantise a weight. Of some ranges of a block, the one with the smallest squared error is taken.

    The ranges are shares of that from the block's smallest to its largest value, zero among them. With a range's whole
    numbers, the scale is that of least squares.

    Args:
        weight: float32, (rows, columns).
        bits: 4 or 8.
        block_size: weights of a row that share a scale and a zero point.
    """
    rows, columns = weight.shape
    shape = BlockShape(rows, columns, bits, block_size)
    missing = shape.blocks * block_size - shape.columns
    values = torch.nn.functional.pad(weight, (0, missing)).reshape(shape.rows, shape.blocks, block_size)
    low, high = values.amin(2).clamp(max=0), values.amax(2).clamp(min=0)
    best = _fit(values, low, high, 2**bits - 1)
    for share in _SHARES:
        tried = _fit(values, share * low, share * high, 2**bits - 1)
        is_better = tried.error < best.error
        best = _Fit(
            torch.where(is_better, tried.error, best.error),
            torch.where(is_better[:, :, None], tried.whole, best.whole),
            torch.where(is_better, tried.scales, best.scales),
            torch.where(is_better, tried.zero_points, best.zero_points),
        )
    return Blocks(shape, _packed(best.whole, bits), best.scales, _packed(best.zero_points, bits))


class _Fit(NamedTuple):
    """Whole numbers, (rows, blocks, block size), with scales, zero points and squared errors, all (rows, blocks)."""

    error: torch.Tensor
    whole: torch.Tensor
    scales: torch.Tensor
    zero_points: torch.Tensor


def _fit(values: torch.Tensor, low: torch.Tensor, high: torch.Tensor, largest: int) -> _Fit:
    """Round blocks to whole numbers between the ends of a range."""
    scales = (high - low) / largest
    scales = torch.where(scales == 0, torch.ones_like(scales), scales)
    zero_points = torch.round(-low / scales).clamp(0, largest)
    whole = (torch.round(values / scales[:, :, None]) + zero_points[:, :, None]).clamp(0, largest)
    steps = whole - zero_points[:, :, None]
    squares = (steps * steps).sum(2)
    scales = torch.where(squares > 0, (values * steps).sum(2) / squares.clamp(min=1), scales)
    return _Fit(((steps * scales[:, :, None] - values) ** 2).sum(2), whole, scales, zero_points)


def _packed(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Return whole numbers as bytes; of 4 bits, two of the last axis to a byte, the first in the lower half."""
    whole = values.to(torch.uint8)
    if bits == 8:
        return whole.contiguous()
    whole = torch.nn.functional.pad(whole, (0, whole.shape[-1] % 2))
    return (whole[..., 0::2] | (whole[..., 1::2] << 4)).contiguous()


def _unpacked(data: torch.Tensor, bits: int) -> torch.Tensor:
    if bits == 8:
        return data
    return torch.stack([data & 15, data >> 4], dim=-1).flatten(-2)


class QuantisedBase:
    """The quantised weights of a model, which from now on computes with what their blocks stand for.

    The linear weights of the layers are quantised, as far as they are frozen and belong to nothing else, such as an
    embedding that a head is tied to.

    Args:
        model: the model, with its adapter.
        kind: what to quantise to.
        kept: addresses of the tensors of the adapter file, which stay float32.

    Raises:
        ExportError: no weight can be quantised, or one is not float32.
    """

    def __init__(self, model: Any, kind: BaseKind, kept: AbstractSet[Address]) -> None:
        self._weights = {
            address_of(module.weight): module.weight.data
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear) and layer_of(name) is not None
        }
        others = {
            address_of(parameter)
            for module in model.modules()
            if not isinstance(module, torch.nn.Linear)
            for parameter in module.parameters(recurse=False)
        }
        self._weights = {a: weight for a, weight in self._weights.items() if a not in kept | others}
        if not self._weights:
            raise ExportError("--base: the model has no frozen linear weights in its layers", "leave out --base")
        self._before: dict[Address, torch.Tensor] = {}
        self.blocks: dict[Address, Blocks] = {}
        for address, weight in self._weights.items():
            if weight.dtype != torch.float32:
                raise ExportError(f"a weight is {weight.dtype}, not float32", "give a model with float32 weights")
            self._before[address] = weight.clone()
            self.blocks[address] = quantise(weight, BITS[kind])
            weight.copy_(self.blocks[address].dequantised())

    @property
    def size(self) -> int:
        """Number of quantised weights."""
        return sum(weight.numel() for weight in self._weights.values())

    @contextlib.contextmanager
    def as_it_was(self) -> Iterator[None]:
        """Give the model its weights as they were while the context lasts."""
        self._set(self._before)
        try:
            yield
        finally:
            self._set({address: blocks.dequantised() for address, blocks in self.blocks.items()})

    def _set(self, values: Mapping[Address, torch.Tensor]) -> None:
        for address, weight in self._weights.items():
            weight.copy_(values[address])
