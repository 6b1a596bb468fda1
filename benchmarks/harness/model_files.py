"""A bundle's parameters in the PyTorch model that it was exported from: their names, and which ones train."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from edge_runtime.bundle.folder import Bundle


def file_name(name: str) -> str:
    """Return a PyTorch parameter's name as PEFT writes it to an adapter file."""
    return name.removeprefix("model.").replace(".default", "").replace(".modules_to_save", "")


def train_as_bundle(model: torch.nn.Module, bundle: Bundle) -> list[torch.nn.Parameter]:
    """Let a model train the parameters that the bundle trains, and freeze all others; returns the trained ones.

    Raises:
        SystemExit: the model lacks some of the bundle's parameters.
    """
    names = {parameter.name for parameter in bundle.manifest.parameters}
    trained = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(file_name(name) in names)
        if parameter.requires_grad:
            trained.append(parameter)
    if sum(parameter.numel() for parameter in trained) != bundle.manifest.parameters[-1].stop:
        raise SystemExit("PyTorch would train other tensors than the bundle: export the bundle from the same model")
    return trained
