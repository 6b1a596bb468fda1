"""The ExecuTorch engine: parity with PyTorch and ONNX Runtime, bad input, no torch on the device."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import numpy as np
import pytest

from edge_runtime.batch import pad, pad_completions
from edge_runtime.engine_onnxruntime import OnnxEngine
from edge_runtime.golden import check_golden, golden_adapter
from edge_runtime.rule import StepRule, step_seeds
from edge_runtime.spzo import spzo_step

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.batch import Batch
    from edge_runtime.bundle import Bundle

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("executorch") is None, reason="needs the executorch package: pip install covey[executorch]"
)
BOTH = ("onnxruntime", "executorch")
HEAD, PROMPT, CAUSAL = "classify-head", "classify-prompt", "causal-lm"
FAST = [("bert", HEAD), ("opt", CAUSAL)]
SLOW = [
    *[(kind, HEAD) for kind in ("deberta", "distilbert", "mpnet", "roberta")],
    ("roberta-mlm", PROMPT),
    *[(kind, PROMPT) for kind in ("llama", "opt", "qwen2-tied", "qwen3")],
    *[(kind, CAUSAL) for kind in ("llama", "qwen2")],
]
CASES = [*FAST, *[pytest.param(*case, marks=[pytest.mark.slow, pytest.mark.timeout(1200)]) for case in SLOW]]


def batch_of(bundle: Bundle) -> Batch:
    """Rows of different lengths, at sizes that were not traced."""
    rng, task = np.random.Generator(np.random.PCG64(3)), bundle.manifest.task
    rows = [rng.integers(4, 50, size=n).tolist() for n in (4, 11, 2, 7)]
    if task.kind == CAUSAL:
        return pad_completions(rows, [2, 3, 1, 4], task.pad_token_id, chunk_tokens=5)
    for index, row in enumerate(rows):
        if task.mask_token_id is not None:
            row[(7 * index + 1) % len(row)] = task.mask_token_id
    return pad(rows, [0, 1, 1, 0], task.pad_token_id)


@pytest.mark.parametrize(("kind", "task"), CASES)
def test_engines_agree(tiny_export: Callable[..., Bundle], kind: str, task: str) -> None:
    """PyTorch eager = ExecuTorch on the golden vectors; a step's scalars as on ONNX Runtime; no product on slow kernels
    (the export refuses that)."""
    from edge_runtime.engine_executorch import ExecutorchEngine

    bundle = tiny_export(kind, task=task, splits=(2,), runtimes=BOTH)
    parity = check_golden(bundle, 1, "executorch")
    assert parity.loss <= 1e-5
    assert parity.logits <= 1e-5
    theta = golden_adapter(bundle.initial_adapter(), bundle.manifest.golden)
    rule = StepRule(front_perturbations=2, back_perturbations=2, eps=0.05)
    seeds, batch = step_seeds(rule, 1, 0, "device", 0), batch_of(bundle)
    steps = [spzo_step(make(bundle, 2, 1), theta, batch, rule, seeds) for make in (OnnxEngine, ExecutorchEngine)]
    scalars = [np.asarray(step.scalars) for step in steps]
    assert np.abs(scalars[0]).max() > 1e-3  # the comparison is about something
    assert np.abs(scalars[0] - scalars[1]).max() <= 1e-3 * np.abs(scalars[0]).max()
