"""Where a measurement comes from: commit, machine and versions."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
"""The repository's root."""
_LIBRARIES = ("numpy", "onnxruntime", "torch", "transformers", "peft")


def provenance(**settings: object) -> dict[str, Any]:
    """Return the fields that every result holds: commit, machine, versions of libraries, and the given settings.

    Args:
        settings: JSON values that are added, for example the batch size.
    """
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {
        "commit": git.stdout.strip() or None,
        "machine": platform.machine(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in _LIBRARIES},
        **settings,
    }


def _cpu_name() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)
