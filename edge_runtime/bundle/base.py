"""A quantised base: how a bundle's frozen weights are stored in blocks, and what that changed when it was exported.

A quantised weight (rows, columns) is stored as three tensors of the weights file: ``NAME.blocks``, uint8, (rows, blocks
of a row, bytes of a block), the lower half of a byte first; ``NAME.scales``, float32, (rows, blocks of a row); and
``NAME.zero_points``, uint8, (rows, bytes), as the operator MatMulNBits of ONNX Runtime reads them. The weight is
(block - zero point) * scale. Adapters, head, norms and embeddings stay float32.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from edge_runtime.values import Count, Strict

BaseKind = Literal["int8", "int4"]
Arithmetic = Literal["float32", "int8"]
BLOCKS, SCALES, ZERO_POINTS = ".blocks", ".scales", ".zero_points"
"""What follows a quantised weight's name in the weights file."""
BITS: dict[BaseKind, int] = {"int8": 8, "int4": 4}
DEFAULT_EPS = 1e-2
"""The scale of a perturbation where a job sets none; an export compares scalars at it."""
LEAST_COSINE = 0.95
"""Between the scalars of both models: with less, forward-only steps go another way on the quantised model."""

_Finite = Annotated[float, msgspec.Meta(ge=-1e30, le=1e30)]


class Base(Strict, frozen=True):
    """How a bundle's base is quantised. The bundle's golden vectors are those of the quantised model.

    Attributes:
        kind: the integers that the weights are stored as.
        block_size: weights of a row that share a scale and a zero point.
        products: what the products with quantised weights are computed in by front, back and predict: ``float32``, or
            ``int8``, for which every block of the activations is rounded to 8 bits. Training graphs use float32.
        weights: number of weights that are stored in blocks.
        rows: the rows of the following figures: the ``golden`` ones, of random tokens at the golden adapter, or those
            of a ``file`` at the initial adapter.
        loss_float32: the loss of the model with its weights as they were, nats.
        loss: the loss of the quantised model on the same rows.
        eps: the perturbation at which the scalars of forward-only steps were compared: a job's default.
        scalar_cosine: the cosine between the scalars of both models in the same random directions.
        least_eps: the smallest perturbation tried, from ``eps`` on, at which the cosine is LEAST_COSINE or more; None:
            none was.
    """

    kind: BaseKind
    block_size: Annotated[int, msgspec.Meta(ge=16, le=256)]
    products: Arithmetic
    weights: Count
    rows: Literal["golden", "file"]
    loss_float32: _Finite
    loss: _Finite
    eps: Annotated[float, msgspec.Meta(gt=0, le=1e3)]
    scalar_cosine: Annotated[float, msgspec.Meta(ge=-1.001, le=1.001)]
    least_eps: Annotated[float, msgspec.Meta(gt=0, le=1e3)] | None

    @property
    def loss_ratio(self) -> float:
        """The quantised model's loss over that of the model as it was; 1 where both are 0."""
        return self.loss / self.loss_float32 if self.loss_float32 else 1.0

    @property
    def nearer(self) -> str:
        """The flag of an export whose scalars are nearer to those of the float32 base."""
        if self.products == "int8":
            return "--base-products float32"
        return "--base int8" if self.kind == "int4" else "--base float32"

    def __str__(self) -> str:
        rows = "golden rows" if self.rows == "golden" else "rows of a file"
        return (
            f"{self.kind} in blocks of {self.block_size}, products in {self.products}; loss {self.loss:.4f} on {rows}, "
            f"{self.loss_float32:.4f} before ({self.loss_ratio:.3f}x); scalars' cosine {self.scalar_cosine:.3f} "
            f"at eps {self.eps:g}"
        )
