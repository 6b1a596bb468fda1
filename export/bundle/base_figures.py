"""What quantising the base changed: the loss, and the scalars of forward-only steps, against the weights as they were.

The quantised model runs on ONNX Runtime, as on a device; the model as it was runs in PyTorch.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np
import torch

from edge_runtime.bundle.base import DEFAULT_EPS, LEAST_COSINE, Base
from edge_runtime.bundle.folder import Bundle
from edge_runtime.bundle.layout import views
from edge_runtime.bundle.manifest import LARGEST_TOLERANCE
from edge_runtime.bundle.manifest_file import bundle_sha256, encode_manifest
from edge_runtime.data.config import DataConfig
from edge_runtime.data.rows import load_rows
from edge_runtime.engines.choose import ONNX_RUNTIME
from edge_runtime.engines.golden import golden_adapter, golden_cases, measure_parity
from edge_runtime.perturbation.perturb import FRONT, perturb_into
from export.errors import ExportError
from export.model.blocks import BLOCK_SIZE
from export.trace.loss import eager

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from edge_runtime.bundle.manifest import Manifest
    from edge_runtime.data.batch import Batch
    from edge_runtime.values import FloatVector
    from export.model.blocks import QuantisedBase
    from export.model.build import ExportModel
    from export.model.options import BaseOptions

    Loss = Callable[[FloatVector, Batch], float]

MOST_ROWS = 128
"""Rows of a file that are evaluated."""
_BATCH_ROWS = 8
_DIRECTIONS = 16
_EPS_TRIED = (DEFAULT_EPS, 3e-2, 1e-1)


@dataclasses.dataclass(frozen=True)
class _Compared:
    """Rows in batches, whose they are, and the adapter at which they are evaluated."""

    batches: list[Batch]
    source: Literal["golden", "file"]
    theta: FloatVector

    def mean(self, loss: Loss) -> float:
        """Return the mean loss over the terms of all batches."""
        terms = [batch.loss_terms for batch in self.batches]
        return float(np.average([loss(self.theta, batch) for batch in self.batches], weights=terms))

    def scalars(self, loss: Loss, eps: float) -> FloatVector:
        """Return (loss(theta + eps z) - loss(theta - eps z)) / (2 eps) for random directions z, each on one batch."""
        found, moved = [], np.empty_like(self.theta)
        for seed in range(_DIRECTIONS):
            both = []
            for scale in (eps, -eps):
                perturb_into(moved, self.theta, seed, FRONT, scale)
                both.append(loss(moved, self.batches[seed % len(self.batches)]))
            found.append((both[0] - both[1]) / (2 * eps))
        return np.array(found)


def measure_base(
    bundle: Bundle,
    model: ExportModel,
    state: Mapping[str, torch.Tensor],
    quantised: QuantisedBase,
    options: BaseOptions,
) -> Base:
    """Compare a quantised bundle with the model as it was.

    Args:
        bundle: the bundle, whose graphs agree with PyTorch.
        model: the model it was made from, with dequantised weights; it is restored afterwards.
        state: the trained tensors by name, sharing the model's data.
        quantised: the model's quantised weights.
        options: how they were quantised, and the rows to compare on.

    Raises:
        DataError: the file of rows has no usable ones.
    """
    compared = _rows(bundle, options)
    ours = _engine_loss(bundle)
    before = functools.partial(_eager_loss, bundle, model, state)
    with quantised.as_it_was():
        loss_before = compared.mean(before)
    cosines: dict[float, float] = {}
    for eps in _EPS_TRIED:
        with quantised.as_it_was():
            expected = compared.scalars(before, eps)
        cosines[eps] = _cosine(compared.scalars(ours, eps), expected)
        if cosines[eps] >= LEAST_COSINE:
            break
    return Base(
        kind=options.kind,
        block_size=BLOCK_SIZE,
        products=options.products,
        weights=quantised.size,
        rows=compared.source,
        loss_float32=loss_before,
        loss=compared.mean(ours),
        eps=DEFAULT_EPS,
        scalar_cosine=cosines[DEFAULT_EPS],
        least_eps=next((eps for eps, cosine in cosines.items() if cosine >= LEAST_COSINE), None),
    )


def allow_rounding(manifest: Manifest, folder: Path) -> Manifest:
    """Return a manifest whose golden vectors allow twice of what rounding activations to 8 bits changes here.

    Every processor that computes in int8 rounds alike; one that computes in float32 is nearer to PyTorch.

    Raises:
        ExportError: it changes so much that the golden vectors would find nothing any more.
    """
    parity = measure_parity(Bundle(folder, manifest, bundle_sha256(encode_manifest(manifest))))
    allowed = max(manifest.golden.tolerance, 2 * parity.loss, 2 * parity.logits)
    if allowed > LARGEST_TOLERANCE:
        raise ExportError(
            f"--base-products int8: rounding activations changes losses by {parity.loss:.2g} and logits by "
            f"{parity.logits:.2g}, too much to be told from an error",
            "use --base-products float32",
        )
    return msgspec.structs.replace(manifest, golden=msgspec.structs.replace(manifest.golden, tolerance=allowed))


def base_notes(base: Base) -> list[str]:
    """Return what a user should know about a quantised base, a sentence each."""
    if base.scalar_cosine >= LEAST_COSINE:
        return []
    low = f"the scalars of forward-only steps have a cosine of {base.scalar_cosine:.3f} to those of the float32 base"
    if base.least_eps is None:
        return [f"{low} at eps {base.eps:g}, and too low a one at every eps tried: use {base.nearer}"]
    return [f"{low} at eps {base.eps:g}: set eps = {base.least_eps:g} in the job's [step]"]


def _rows(bundle: Bundle, options: BaseOptions) -> _Compared:
    if options.rows is None:
        theta = golden_adapter(bundle.initial_adapter(), bundle.manifest.golden)
        return _Compared([case.batch for case in golden_cases(bundle)], "golden", theta)
    rows = load_rows(bundle, DataConfig(path=str(options.rows.resolve())))
    count = min(len(rows), MOST_ROWS)
    starts = range(0, count, _BATCH_ROWS)
    batches = [rows.batch(range(start, min(start + _BATCH_ROWS, count))) for start in starts]
    return _Compared(list(batches), "file", bundle.initial_adapter())


def _engine_loss(bundle: Bundle) -> Loss:
    """Return the loss of front and back at the last split on ONNX Runtime."""
    engine = ONNX_RUNTIME.make_engine(bundle, bundle.manifest.splits[-1])
    cut = engine.front_workspace.size

    def loss(theta: FloatVector, batch: Batch) -> float:
        np.copyto(engine.front_workspace, theta[:cut])
        np.copyto(engine.back_workspace, theta[cut:])
        return engine.back(engine.front(batch), batch)

    return loss


def _eager_loss(
    bundle: Bundle, model: ExportModel, state: Mapping[str, torch.Tensor], theta: FloatVector, batch: Batch
) -> float:
    """Return PyTorch's loss with other trained tensors than the model's."""
    kept = {parameter.name: state[parameter.name].clone() for parameter in bundle.manifest.parameters}
    tensors = {field.name: torch.from_numpy(getattr(batch, field.name).copy()) for field in dataclasses.fields(batch)}
    with torch.no_grad():
        for name, value in views(theta, bundle.manifest.parameters).items():
            state[name].copy_(torch.from_numpy(value))
        loss = float(eager(model, tensors)[0])
        for name, tensor in kept.items():
            state[name].copy_(tensor)
    return loss


def _cosine(one: FloatVector, other: FloatVector) -> float:
    """Return the cosine between two vectors; 0 where one of them is zero."""
    norms = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / norms if norms else 0.0
