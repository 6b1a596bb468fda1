"""The models that are compared: their export, and their parameters in PyTorch under the bundle's names."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from server.samples.reviews import LABELS

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from edge_runtime.bundle.folder import Bundle


def run_export(model_dir: Path, out: Path, *flags: str, is_silent: bool = False) -> Path:
    """Export a model that labels reviews as rotten or fresh, in a process of its own.

    Args:
        model_dir: the model's Hugging Face folder.
        out: the bundle's folder.
        flags: further flags of ``covey export``.
        is_silent: whether the export's progress is hidden.

    Returns:
        The bundle's folder.
    """
    command = [sys.executable, "-m", "server.cli", "export", str(model_dir), "--labels", ",".join(LABELS)]
    subprocess.run(
        [*command, *flags, "--out", str(out)],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL if is_silent else None,
    )
    return out


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
