"""Routines of the rivals in PyTorch: a MeZO step, and LoRA's loss and gradients by backpropagation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.workers.routines import bundle_of, random_batch

if TYPE_CHECKING:
    import torch

    from benchmarks.workers.routines import Routines, Settings

_EPS = 1e-2
_LEARNING_RATE = 1e-6


def torch_mezo(settings: Settings) -> Routines:
    """``run``: a MeZO step in PyTorch, on the parameters that the bundle trains.

    The paper's Algorithm 1: perturb in place with torch.normal, run both forward passes, restore, update.
    ``mezo_directions`` directions cost as many full forward passes as the SPZO step.
    """
    import torch

    from benchmarks.harness.model_files import train_as_bundle
    from export.finished import load_finished, untrained

    torch.set_num_threads(settings["threads"])
    bundle = bundle_of(settings)
    load = untrained if bundle.manifest.train == "full" else load_finished
    model = load(bundle.file("adapter"), Path(settings["model_dir"]))
    parameters = train_as_bundle(model, bundle)
    input_ids, attention_mask, labels = _tensors(settings)

    def shift(seed: int, scale: float) -> None:
        torch.manual_seed(seed)
        for parameter in parameters:
            parameter.data.add_(torch.normal(0.0, 1.0, size=parameter.shape), alpha=scale)

    def loss() -> float:
        return float(torch.nn.functional.cross_entropy(model(input_ids, attention_mask), labels))

    def run() -> None:
        with torch.inference_mode():
            for seed in range(settings["mezo_directions"]):
                shift(seed, _EPS)
                plus = loss()
                shift(seed, -2 * _EPS)
                minus = loss()
                shift(seed, _EPS)
                shift(seed, -_LEARNING_RATE * (plus - minus))

    return {"run": run}


def torch_lora(settings: Settings) -> Routines:
    """``run``: loss and gradients of the parameters that the bundle trains, all layers, in PyTorch."""
    import torch

    from benchmarks.harness.model_files import train_as_bundle
    from export.finished import load_finished

    torch.set_num_threads(settings["threads"])
    bundle = bundle_of(settings)
    model = load_finished(bundle.file("adapter"), Path(settings["model_dir"]))
    parameters = train_as_bundle(model, bundle)
    input_ids, attention_mask, labels = _tensors(settings)

    def run() -> None:
        loss = torch.nn.functional.cross_entropy(model(input_ids, attention_mask), labels)
        torch.autograd.grad(loss, parameters)

    return {"run": run}


def _tensors(settings: Settings) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return token ids, attention mask and labels of the random batch."""
    import torch

    batch = random_batch(settings)
    return (
        torch.from_numpy(batch.input_ids),
        torch.from_numpy(batch.attention_mask),
        torch.from_numpy(batch.labels),
    )
