"""Writes the golden vectors: inputs with the losses, outputs and gradients that PyTorch computes for them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import save_file

from edge_runtime.bundle.layout import Parameter, views
from edge_runtime.bundle.manifest import Golden, output_names
from edge_runtime.engines.golden import golden_adapter, training_layers
from export.model.address import address_of
from export.source.borders import border_lengths
from export.trace.batches import example_batch, shortest_row, sizes
from export.trace.gradients import active_layers, requiring_gradients, trained_parameters
from export.trace.loss import eager

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from export.model.build import ExportModel

GOLDEN_TOLERANCE = 1e-5
"""Largest accepted difference of losses and logits; see edge_runtime.engines.golden."""
_GOLDEN_SEED = 20260101
_GOLDEN_SHAPES = ((2, 9), (4, 24), (1, 5))
"""Rows and tokens of the first batches; _golden_batches adds the longest row and the borders."""


def write_golden(
    model: ExportModel,
    parameters: list[Parameter],
    state: dict[str, torch.Tensor],
    scale: float,
    path: Path,
    levels: Sequence[int],
) -> Golden:
    """Write batches with the losses, outputs and gradients of PyTorch eager, of the module itself and not of its trace.

    The adapter is perturbed for them: at the start, B and a new head are zero and would hide every difference.

    Args:
        model: the model; it is restored afterwards.
        parameters: the layout of the trained tensors.
        state: the trained tensors by name, sharing the model's data.
        scale: scale of the adapter's perturbation.
        path: the file.
        levels: numbers of active layers for which gradients are written.

    Returns:
        What the manifest says about the file.
    """
    batches = list(_golden_batches(model))
    golden = Golden(
        file=path.name,
        batches=len(batches),
        seed=_GOLDEN_SEED,
        scale=scale,
        tolerance=GOLDEN_TOLERANCE,
    )
    tensors: dict[str, torch.Tensor] = {}
    with perturbed(state, parameters, golden):
        for n, batch in enumerate(batches):
            with torch.no_grad():
                loss, values = eager(model, batch)
            named = batch | {"loss": loss, output_names(model.task.kind)[0]: values}
            tensors |= {f"{n}.{name}": tensor.contiguous() for name, tensor in named.items()}
        first = {name: tensors[f"0.{name}"] for name in sizes(model.task)}
        for level in levels:
            loss, gradients = golden_gradients(model, parameters, state, level, first)
            tensors |= {f"train_{level}.loss": loss, f"train_{level}.gradients": gradients}
    save_file(tensors, path)
    return golden


def _golden_batches(model: ExportModel) -> Iterator[dict[str, torch.Tensor]]:
    """Yield the batches: some small ones, the longest row, the shortest row, and rows on both sides of each border."""
    task, vocab_size = model.task, model.folder.vocab_size
    # The longest row has the most distant relative positions and the last absolute one.
    shapes = (*_GOLDEN_SHAPES, (1, task.max_tokens), (1, shortest_row(task)))
    n = 0
    for n, (rows, tokens) in enumerate(shapes, start=1):
        yield example_batch(task, vocab_size, rows, min(tokens, task.max_tokens), seed=n)
    borders = border_lengths(model.folder.config, task.max_tokens)
    mixed = [[task.max_tokens, shortest_row(task), borders[0]]] if borders else []
    for seed, lengths in enumerate([*([length, length - 1] for length in borders), *mixed], start=n + 1):
        lengths_here = [max(shortest_row(task), length) for length in lengths]
        yield example_batch(task, vocab_size, len(lengths), max(lengths_here), seed, lengths_here)


def golden_gradients(
    model: ExportModel,
    parameters: Sequence[Parameter],
    state: Mapping[str, torch.Tensor],
    level: int,
    batch: dict[str, torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss (a scalar) and its gradient (the whole layout) with the layers that golden.training_layers picks.

    Entries of absent layers are 0. The model runs as it was loaded, not as it is traced for training graphs.
    """
    n_layers = model.folder.layers
    active = training_layers(level, n_layers)
    there = [p for p in parameters if p.layer in active or not 0 <= p.layer < n_layers]
    trained = trained_parameters(model, {address_of(state[p.name]) for p in there})
    with (
        active_layers(model.peft_model, active, n_layers),
        requiring_gradients(trained),
        torch.enable_grad(),
    ):
        loss, _ = eager(model, batch)
        found = dict(zip(map(address_of, trained), torch.autograd.grad(loss, trained), strict=True))
    flat = torch.zeros(parameters[-1].stop)
    for p in there:
        flat[p.offset : p.stop] = found[address_of(state[p.name])].flatten()
    return loss.detach(), flat


@contextlib.contextmanager
def perturbed(state: dict[str, torch.Tensor], parameters: list[Parameter], golden: Golden) -> Iterator[None]:
    """Set the trained tensors in ``state`` to the golden vectors' adapter while the context lasts."""
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
