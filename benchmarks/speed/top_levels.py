"""Speed and memory of top levels: the last k layers trained while all run, against full depth and layer dropout.

    python -m benchmarks.speed.top_levels --model minilm [--repeats 7]

Every level of one bundle is run in turn by one process; on one thread times are CPU seconds. Memory is that of
harness.measure.memory_mb, beside the estimate by which a server gives levels to devices. The last line is one JSON
object.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness.bundles import export_once
from benchmarks.harness.figures import ratios, spread
from benchmarks.harness.measure import alternating, memory_mb
from benchmarks.harness.provenance import provenance
from benchmarks.harness.tables import markdown_table
from benchmarks.speed.levels import model_of
from edge_runtime.bundle.folder import open_bundle
from edge_runtime.bundle.levels import rank
from edge_runtime.bundle.memory_need import bytes_for, level_need

if TYPE_CHECKING:
    from benchmarks.harness.figures import Spread

TOPS = {"roberta-base": "6,3,1", "minilm": "3,2,1"}
HEAD = ("level", "step, s", "over full", "memory, MB", "over full", "estimate over peak")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", choices=sorted(TOPS), default="roberta-base", help="roberta-base has random weights (%(default)s)"
    )
    parser.add_argument("--repeats", type=int, default=7, help="measurements of each level (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=8, help="rows per batch (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=64, help="tokens per row (default: %(default)s)")
    parser.add_argument("--bundles", type=Path, help="folder that keeps the exported bundle (default: it is deleted)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        bundle = export(args.model, args.bundles or Path(scratch), args.tokens)
        settings = {"bundle": str(bundle.resolve()), "threads": 1, "rows": args.rows, "tokens": args.tokens}
        found = measure(bundle, settings, args.repeats)
    rows = [
        [level, *(f"{values[name]['median']:.3f}" for name in ("step_s", "time", "memory_mb", "memory", "estimate"))]
        for level, values in found.items()
    ]
    print(markdown_table(HEAD, rows))
    print(json.dumps({"model": args.model, "levels": found, **provenance(rows=args.rows, tokens=args.tokens)}))


def export(model: str, root: Path, tokens: int) -> Path:
    """Export a bundle with half and full depth and with the model's top levels, unless it exists."""
    root.mkdir(parents=True, exist_ok=True)
    levels = ("--levels", "drop:1.0,0.5", f"top:{TOPS[model]}", "--max-tokens", str(tokens))
    return export_once(model_of(model, root), root / f"{model}-top", "--task", "classify-head", "--split", "3", *levels)


def measure(bundle: Path, settings: dict[str, Any], repeats: int) -> dict[str, dict[str, Spread]]:
    """Return spreads of each level's ``step_s`` and ``memory_mb``, and of ``time`` and ``memory`` over full depth's.

    ``estimate`` is the estimated memory over the measured peak; levels are in ascending order.
    """
    manifest = open_bundle(bundle).manifest
    levels = sorted(manifest.levels, key=rank)
    seconds = alternating([("levels", str(level)) for level in levels], settings, repeats, "cpu_s")
    held = {level: memory_mb("gradients", settings | {"level": level, "half": level}) for level in levels}
    full = manifest.model.layers
    found = {}
    for level in levels:
        estimate = bytes_for(level_need(manifest, level), settings["rows"]) / 1e6
        found[str(level)] = {
            "step_s": spread(seconds["levels", str(level)]),
            "time": ratios(seconds["levels", str(level)], seconds["levels", str(full)]),
            "memory_mb": spread(held[level]),
            "memory": ratios(held[level], held[full]),
            "estimate": ratios([estimate] * len(held[level]), held[level]),
        }
    return found


if __name__ == "__main__":
    main()
