"""The bandit with a real fleet: eight device processes, MiniLM, real reviews, a real broker; against full depth.

The devices are of four classes, and each class is really slower than the one before: its processes are stopped and
continued several times a second (SIGSTOP, SIGCONT), both while `covey-edge profile` measures them and while they
train. So profiles are measured and seconds are real, but all devices share this machine's cores, unlike a fleet's.

    python -m benchmarks.arm_choice.fleet --workdir /tmp/bandit-fleet [--rounds 30] [--plot fleet.png]

`make bench-fleet` runs it. Runs with the bandit and at full depth alternate. Time counts from the first offer. The last
line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.arm_choice.duty_cycle import DutyCycle
from benchmarks.arm_choice.slow_devices import BATCH_SIZE, CLASSES, DEVICES, devices, measure_profiles, prepare
from benchmarks.harness.fleet_run import job_toml
from benchmarks.harness.plots import new_panels, save
from benchmarks.harness.provenance import provenance
from server import events
from server.serving.loaded_job import load_job
from server.serving.one_shot import run_job
from server.serving.options import ServeOptions
from server.storage.ledger import Ledger
from server.storage.ledger_address import LEDGER_FILE
from server.storage.queries import offers_of
from server.web.http_app import bind

if TYPE_CHECKING:
    from collections.abc import Sequence

STEPS, LEARNING_RATE = 4, 0.0007
ACCURACIES, LOSSES = (0.70, 0.72, 0.74), (0.64, 0.60, 0.56)
WAYS: dict[str, dict[str, dict[str, Any]]] = {
    "full depth": {"stld": {"levels": [6]}},
    "ours": {"stld": {}, "bandit": {"policy": "thompson"}},
}
"""The two ways to choose levels: tables of ``job.toml``."""

Curve = list[tuple[float, float, float]]
"""Seconds since the first offer, held-out loss and accuracy, after each round."""


@dataclass(frozen=True)
class Played:
    """A run that has ended.

    Attributes:
        curve: see Curve.
        start: held-out loss and accuracy before the first round.
        levels: how often each level was offered, by device.
    """

    curve: Curve
    start: tuple[float, float]
    levels: dict[str, dict[str, int]]


@dataclass
class Watch:
    """Notes the curve of a run while it runs, and prints it; an observer of the server's events.

    Attributes:
        label: names the run in what is printed.
        curve: see Curve.
        start: held-out loss and accuracy before the first round, once they are known.
    """

    label: str
    curve: Curve = field(default_factory=list)
    start: tuple[float, float] | None = None
    _first_offer_s: float | None = None

    def __call__(self, event: events.Event) -> None:
        """Note an event."""
        if isinstance(event, events.RoundOpened) and self._first_offer_s is None:
            self._first_offer_s = time.monotonic()
        elif isinstance(event, events.Evaluated) and event.round is None:
            self.start = (event.loss, event.accuracy)
        elif isinstance(event, events.Evaluated) and self._first_offer_s is not None:
            seconds = time.monotonic() - self._first_offer_s
            self.curve.append((seconds, event.loss, event.accuracy))
            print(
                f"{self.label}, round {event.round}: {seconds:.0f} s, loss {event.loss:.4f}, "
                f"accuracy {event.accuracy:.3f}",
                file=sys.stderr,
            )


def play(workdir: Path, way: str, seed: int, rounds: int, profiles: dict[float, Path], cycle: DutyCycle) -> Played:
    """Run a job to its end with the whole fleet, in a folder of its own under ``workdir``."""
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
    stld = {"steps": STEPS, "batch_size": BATCH_SIZE, "learning_rate": LEARNING_RATE, **WAYS[way]["stld"]}
    (root / "job.toml").write_text(job_toml(fields, {**WAYS[way], "stld": stld}))
    fitted, bundle = load_job(root / "job.toml", workdir / "bundle")
    with bind("127.0.0.1", 0) as socket:
        port = int(socket.getsockname()[1])
    options = ServeOptions(state_dir=root / "server", listen="127.0.0.1", mqtt_port=port, http_port=0, threads=1)
    watch = Watch(f"{way}, seed {seed}")
    with devices(workdir, root, port, profiles, cycle):
        if run_job(fitted, bundle, options, watch) is None:
            raise SystemExit("the job was stopped before its end")
    assert watch.start is not None  # noqa: S101 the job has ended, so its start was evaluated
    ledger = Ledger(root / "server" / LEDGER_FILE, read_only=True)
    levels: dict[str, dict[str, int]] = {}
    counts = Counter((offer.device, offer.level) for offer in offers_of(ledger, fitted.job.name))
    for (device, level), count in sorted(counts.items(), key=lambda entry: (entry[0][0], entry[0][1] or 0)):
        levels.setdefault(device, {})[str(level)] = count
    ledger.close()
    return Played(watch.curve, watch.start, levels)


def seconds_to(played: Played, *, accuracy: float | None = None, loss: float | None = None) -> float | None:
    """Return when the mean of three successive evaluations first reached an accuracy, or a loss; None: never."""
    for index in range(2, len(played.curve)):
        mean_loss, mean_accuracy = (
            statistics.fmean(entry[column] for entry in played.curve[index - 2 : index + 1]) for column in (1, 2)
        )
        if (accuracy is not None and mean_accuracy >= accuracy) or (loss is not None and mean_loss <= loss):
            return round(played.curve[index][0], 1)
    return None


def all_seconds(played: Played) -> dict[str, float | None]:
    """Return when each target was reached; None: never."""
    found = {f"accuracy {target:.2f}": seconds_to(played, accuracy=target) for target in ACCURACIES}
    return found | {f"loss {target:.2f}": seconds_to(played, loss=target) for target in LOSSES}


def plot(found: dict[str, list[Played]], path: Path) -> None:
    """Draw held-out loss and accuracy against seconds, a line per run."""
    figure, panels = new_panels(1, 2, (11, 4))
    for number, (way, runs) in enumerate(found.items()):
        for run, played in enumerate(runs):
            points = [(0.0, *played.start), *played.curve]
            for axes, column in zip(panels, (1, 2), strict=True):
                label = way if run == 0 else None
                axes.plot([p[0] for p in points], [p[column] for p in points], color=f"C{number}", label=label)
    for axes, what in zip(panels, ("held-out loss", "held-out accuracy"), strict=True):
        axes.set_xlabel("seconds since the first offer, measured")
        axes.set_ylabel(what)
    panels[0].legend()
    save(figure, path, 110)


def ratios(found: dict[str, list[Played]]) -> dict[str, list[float | None]]:
    """Return full depth's seconds over ours for each target, by seed; None where one of the two never reached it."""
    pairs = [(all_seconds(full), all_seconds(ours)) for full, ours in zip(*found.values(), strict=True)]
    return {target: [_ratio(full[target], ours[target]) for full, ours in pairs] for target in pairs[0][0]}


def _ratio(above: float | None, below: float | None) -> float | None:
    return None if above is None or below is None else round(above / below, 2)


def described(run: Played) -> dict[str, Any]:
    """Return a run as JSON values."""
    return {
        "start": run.start,
        "end": run.curve[-1][1:],
        "seconds": round(run.curve[-1][0], 1),
        "seconds_to": all_seconds(run),
        "levels": run.levels,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Compare, print the progress, and one JSON document as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="folder that keeps bundle, rows and profiles")
    parser.add_argument("--rounds", type=int, default=30, help="rounds of a job (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each way (default: %(default)s)")
    parser.add_argument("--plot", type=Path, help="write a picture to this file")
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
        "benchmark": "bandit_fleet",
        "classes": CLASSES,
        "rounds": args.rounds,
        "full_depth_over_ours": ratios(found),
        **{way: [described(run) for run in runs] for way, runs in found.items()},
        "provenance": provenance(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
