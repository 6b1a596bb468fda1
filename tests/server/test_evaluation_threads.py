"""The server's own evaluation, and ExecuTorch, start no more threads than affinity and control groups leave."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from executorch_cases import BOTH
from fleets import write_job

from edge_runtime.host.threads import BLAS_VARIABLES, TOKENIZERS_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle

EVALUATE = """
import json, os, sys
from pathlib import Path
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from edge_runtime.host.threads import limit_libraries
limit_libraries(os.environ, blas=1, tokenizers=1)
from server.evaluation import evaluate
from server.serving.loaded_job import load, load_job
job, bundle = load_job(Path(sys.argv[1]), Path(sys.argv[2]))
import onnxruntime  # which starts a thread that computes nothing
began, counts, kept = len(os.listdir("/proc/self/task")), [], []
for threads in (0, 3):  # as covey serve --threads has them
    loaded = load(job, bundle, threads)
    kept.append(loaded)
    evaluate(loaded.predictor, bundle.initial_adapter(), loaded.rows, len(bundle.manifest.task.labels))
    counts.append(len(os.listdir("/proc/self/task")))
print(json.dumps([began, *counts]))
"""
LOWERED = """
import json, os, sys
from pathlib import Path
if sys.argv[2]:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from edge_runtime.bundle.folder import open_bundle
from edge_runtime.engines.choose import Engines
from edge_runtime.engines.golden import check_golden
bundle = open_bundle(Path(sys.argv[1]))
engines = Engines("executorch", 0)
assert check_golden(bundle, engines).loss < 1e-3
print(json.dumps(engines.operator_threads()))
"""


def said(code: str, *arguments: str) -> str:
    """Run a program without the limits of the one that tests; return its last line."""
    clean = {name: value for name, value in os.environ.items() if name not in {*BLAS_VARIABLES, TOKENIZERS_VARIABLE}}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, env=clean, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.timeout(600)
def test_an_evaluation_on_one_core_starts_no_threads_for_others(tiny_bundle: Bundle, tmp_path: Path) -> None:
    began, by_itself, with_three = json.loads(said(EVALUATE, str(write_job(tmp_path)), str(tiny_bundle.path)))
    assert by_itself <= began + 1, "one thread more encodes rows"
    assert with_three >= by_itself + 2, "threads that are started would be seen"


@pytest.mark.timeout(600)
@pytest.mark.skipif(importlib.util.find_spec("executorch") is None, reason="needs pip install covey[executorch]")
def test_executorch_on_one_core_has_one_thread(tiny_export: Callable[..., Bundle]) -> None:
    bundle = tiny_export("bert", splits=(2,), levels=(1,), runtimes=BOTH)  # the same in other tests
    assert json.loads(said(LOWERED, str(bundle.path), "one core")) == 1
    if len(os.sched_getaffinity(0)) > 1:
        # Some processors have fast cores alone, and some two kinds; ExecuTorch takes none but the fast ones.
        assert json.loads(said(LOWERED, str(bundle.path), "")) in range(1, len(os.sched_getaffinity(0)) + 1)
