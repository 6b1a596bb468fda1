"""Tokens a second of a causal model that continues a prompt: with a cache of keys and values, against without one.

    python -m benchmarks.speed.decode [--repeats 5]

`make bench-decode` runs it on SmolLM2 (135 M). The two sides alternate and make the same tokens on the same threads; on
one thread times are CPU seconds, which hardly depend on other work on the machine. Keys end with the tokens of the
prompt and the new tokens. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness.bundles import run_export, sample_model
from benchmarks.harness.figures import Spreads, ratios, spread
from benchmarks.harness.measure import alternating_peaks_mb, paired
from benchmarks.harness.provenance import provenance
from edge_runtime.bundle.folder import open_bundle
from edge_runtime.bundle.overview import decode_overview

LEAST = {"cached_over_uncached_16+32": 1.9, "cached_over_uncached_64+64": 3.3}
"""The ratios of tokens a second that later runs must keep: a tenth below the first measurement, 2.12 and 3.72."""
LENGTHS = ((16, 32), (64, 64))
"""Tokens of the prompt, and new tokens."""
_WITH, _WITHOUT = ("continuation", "run"), ("continuation_uncached", "run")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--threads", type=int, default=1, help="more threads are noisy on shared cores (default: %(default)s)"
    )
    parser.add_argument("--repeats", type=int, default=5, help="pairs of measurements (default: %(default)s)")
    parser.add_argument("--bundle", type=Path, help="SmolLM2's bundle for causal-lm (default: exported now)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        flags = ("--task", "causal-lm", "--split", "20", "--max-tokens", "128")
        bundle = args.bundle or run_export(sample_model("smollm2"), Path(scratch) / "bundle", *flags)
        decode = decode_overview(open_bundle(bundle))
        if decode is None:
            raise SystemExit("the bundle has no decode graph: export it with --task causal-lm")
        results: Spreads = {}
        for prompt_tokens, new_tokens in LENGTHS:
            settings = {
                "bundle": str(bundle.resolve()),
                "threads": args.threads,
                "prompt_tokens": prompt_tokens,
                "new_tokens": new_tokens,
            }
            results |= measure(settings, args.repeats)
    for name, least in LEAST.items():
        found = results[name]
        verdict = "reached" if found["median"] >= least else "MISSED"
        print(f"{name:32} {found['median']:8.2f}  ({found['min']:.2f} … {found['max']:.2f})  {verdict} {least}")
    more = {"threads": args.threads, "model": "smollm2", "decode": decode}
    print(json.dumps({**results, **provenance(**more)}))


def measure(settings: dict[str, Any], repeats: int) -> Spreads:
    """Measure tokens a second with and without a cache, their ratio, and the peak memory of both."""
    clock = "cpu_s" if settings["threads"] == 1 else "seconds"
    with_cache, without = paired(_WITH, _WITHOUT, settings, repeats, clock)
    new_tokens, shape = settings["new_tokens"], f"{settings['prompt_tokens']}+{settings['new_tokens']}"
    peaks = alternating_peaks_mb((_WITH[0], _WITHOUT[0]), settings, runs=1)
    return {
        f"cached_over_uncached_{shape}": ratios(without, with_cache),
        f"cached_tokens_per_second_{shape}": spread([new_tokens / seconds for seconds in with_cache]),
        f"uncached_tokens_per_second_{shape}": spread([new_tokens / seconds for seconds in without]),
        f"cached_rss_over_uncached_{shape}": ratios(*peaks),
    }


if __name__ == "__main__":
    main()
