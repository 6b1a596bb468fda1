"""Golden vectors: inputs with the losses, logits and gradients that PyTorch gives for them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import save_file

from edge_runtime.bundle.layout import Parameter, views
from edge_runtime.bundle.manifest import Golden, output_names
from edge_runtime.engines.golden import golden_adapter, training_layers
from export.trace.batches import example_batch, sizes
from export.trace.gradients import active_layers, requiring_gradients, trained_parameters
from export.trace.loss import eager

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from export.model.build import ExportModel
    from export.source.folder import ModelFolder

GOLDEN_TOLERANCE = 1e-5
_GOLDEN_SEED = 20260101
_GOLDEN_SHAPES = ((2, 9), (4, 24), (1, 5))


def _write_golden(
    model: ExportModel,
    folder: ModelFolder,
    parameters: list[Parameter],
    state: dict[str, torch.Tensor],
    scale: float,
    path: Path,
    levels: Sequence[int],
) -> Golden:
    """Write batches with the losses, logits and gradients of PyTorch eager: the module itself, not what was traced.

    The adapter is perturbed meanwhile: at its start B is zero, a new head too, and nothing would be compared.
    """
    # The longest row too: relative positions far apart, the last of the absolute ones.
    shapes = (*_GOLDEN_SHAPES, (1, model.task.max_tokens))
    golden = Golden(
        file=path.name,
        batches=len(shapes),
        seed=_GOLDEN_SEED,
        scale=scale,
        tolerance=GOLDEN_TOLERANCE,
    )
    tensors: dict[str, torch.Tensor] = {}
    with perturbed(state, parameters, golden):
        for n, (rows, tokens) in enumerate(shapes):
            tokens_here = min(tokens, model.task.max_tokens)
            batch = example_batch(model.task, int(folder.config.vocab_size), rows, tokens_here, seed=n + 1)
            with torch.no_grad():
                loss, values = eager(model, batch)
            named = batch | {"loss": loss, output_names(model.task.kind)[0]: values}
            tensors |= {f"{n}.{name}": tensor.contiguous() for name, tensor in named.items()}
        first = {name: tensors[f"0.{name}"] for name in sizes(model.task)}
        for level in levels:
            loss, gradients = golden_gradients(model, folder, parameters, state, level, first)
            tensors |= {f"train_{level}.loss": loss, f"train_{level}.gradients": gradients}
    save_file(tensors, path)
    return golden


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


@contextlib.contextmanager
def perturbed(state: dict[str, torch.Tensor], parameters: list[Parameter], golden: Golden) -> Iterator[None]:
    """Have the trained tensors at the adapter of the golden vectors meanwhile; ``state`` holds them by name."""
    initial = np.concatenate([state[p.name].detach().numpy().ravel() for p in parameters]).astype(np.float32)
    targets = views(golden_adapter(initial, golden), parameters)
    before = {p.name: state[p.name].detach().clone() for p in parameters}
    with torch.no_grad():
        for name, value in targets.items():
            state[name].copy_(torch.from_numpy(np.ascontiguousarray(value)))
        try:
            yield
        finally:
            for name, tensor in before.items():
                state[name].copy_(tensor)
