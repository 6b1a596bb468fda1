"""Names of model files that several benchmarks use."""

from __future__ import annotations


def file_name(name: str) -> str:
    """Return a parameter's name in PEFT's adapter file."""
    return name.removeprefix("model.").replace(".default", "").replace(".modules_to_save", "")
