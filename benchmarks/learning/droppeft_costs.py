"""What a step costs in droppeft.py: CPU seconds and memory at each level, and of a forward-only step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.harness.figures import spread
from benchmarks.harness.measure import alternating, memory_mb
from benchmarks.harness.provenance import provenance
from benchmarks.harness.results import add_result, read_results
from edge_runtime.bundle.manifest_file import read_manifest

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.harness.results import Result
    from benchmarks.learning.droppeft_variants import VariantPlan

_REPEATS = 7


def costs(model: str, plan: VariantPlan, bundle: Path, results: Path) -> Result:
    """Return what steps cost, from the results file or by measuring all in turn.

    Returns:
        ``step_s``: for each level, CPU seconds of loss and gradients for a full batch of the longest rows.
        ``memory_mb``: for each level, the memory that takes, see harness.measure.memory_mb. ``forward_step_s``,
        ``forward_memory_mb``: the same of a forward-only step.
    """
    for result in read_results(results):
        if result["model"] == model and "step_s" in result:
            return result
    manifest = read_manifest(bundle)[0]
    settings = {
        "bundle": str(bundle.resolve()),
        "threads": 1,
        "rows": plan.stld["batch_size"],
        "tokens": plan.setup.max_tokens,
        "split": manifest.splits[-1],
        "p1": 1,
        "p2": plan.step["back_perturbations"],
    }
    levels = [str(level) for level in manifest.levels]
    forward_step = ("step", "run")
    seconds = alternating([*(("levels", level) for level in levels), forward_step], settings, _REPEATS, "cpu_s")
    held = {level: memory_mb("gradients", settings | {"level": int(level), "half": int(level)}) for level in levels}
    measured = {
        "model": model,
        "step_s": {level: spread(seconds["levels", level]) for level in levels},
        "memory_mb": {level: spread(values) for level, values in held.items()},
        "forward_step_s": spread(seconds[forward_step]),
        "forward_memory_mb": spread(memory_mb("step", settings)),
        "tokens": plan.setup.max_tokens,
        **provenance(),
    }
    add_result(results, measured)
    return measured
