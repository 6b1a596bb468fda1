"""Times the back block one adapter at a time against many in one call, and chooses how many a call takes.

``python -m edge_runtime.profiling.stacks`` reads a StackOrder (JSON) from stdin and writes a StackProfile to stdout.
"""

from __future__ import annotations

import math
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edge_runtime.bundle.folder import open_bundle
from edge_runtime.bundle.stack import NoStack, adapters_that_fit, find_stack
from edge_runtime.device.memory import free_bytes
from edge_runtime.engines.choose import Engines
from edge_runtime.engines.golden import golden_adapter
from edge_runtime.engines.providers import CPU_ONLY
from edge_runtime.errors import CoveyError
from edge_runtime.profiling.worker import make_batch
from edge_runtime.protocol.profile import StackProfile, StackTiming

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.data.batch import Batch
    from edge_runtime.engines.back_stack import BundleBackStack
    from edge_runtime.engines.bundle_engine import Boundary, BundleEngine
    from edge_runtime.protocol.profile import Profile

COUNTS = (2, 4, 8, 16)
"""Adapters of a call that are tried."""
PAYS_BELOW = 0.95
"""Ratio of the times below which many adapters in one call are chosen: a smaller gain may be chance."""
_LEAST_PAIRS, _MOST_PAIRS = 5, 25


class StackOrder(msgspec.Struct, frozen=True):
    """What to measure.

    Attributes:
        bundle: path of the bundle.
        split: one of its splits that has a stack graph.
        threads: threads of one operator; 0: as many as may run at once.
        shapes: batch sizes × tokens.
        seconds: time for each shape.
        providers: execution providers of ONNX Runtime, as in edge.toml.
    """

    bundle: str
    split: int
    threads: int
    shapes: list[tuple[int, int]]
    seconds: float
    providers: tuple[str, ...] = CPU_ONLY


def stack_orders(
    bundle: Bundle, shapes: Sequence[tuple[int, int]], threads: int, seconds: float, providers: tuple[str, ...]
) -> list[StackOrder]:
    """Return an order for each split of a bundle that has a stack graph."""
    return [
        StackOrder(str(bundle.path.resolve()), split, threads, list(shapes), seconds, providers)
        for split in bundle.manifest.splits
        if not isinstance(find_stack(bundle.path, bundle.manifest, split), NoStack)
    ]


def run_stack(order: StackOrder) -> StackProfile:
    """Carry out one order in a process of its own; what went wrong is the profile's note."""
    command = [sys.executable, "-m", "edge_runtime.profiling.stacks"]
    done = subprocess.run(command, input=msgspec.json.encode(order), capture_output=True, check=False)
    try:
        return msgspec.json.decode(done.stdout, type=StackProfile)
    except msgspec.DecodeError:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        note = f"its process failed ({done.returncode}): {said[-1] if said else 'it said nothing'}"
        return StackProfile(engine="onnxruntime", split=order.split, timings=[], note=note[:2000])


def measure_stack(order: StackOrder, clock: Callable[[], float] = time.perf_counter) -> StackProfile:
    """Time both ways, in turn, at every shape, for the numbers of adapters for which there is memory.

    Raises:
        BundleError: a graph cannot be loaded.
        TrainingError: a graph fails at a shape.
    """
    bundle = open_bundle(Path(order.bundle))
    engines = Engines("onnxruntime", order.threads, order.providers)
    found, memory = engines.find_stack(bundle, order.split), free_bytes()
    engine, stack = engines.make_engine(bundle, order.split), engines.make_back_stack(bundle, order.split, COUNTS[-1])
    theta = golden_adapter(bundle.initial_adapter(), bundle.manifest.golden)
    cut = engine.front_workspace.size
    engine.front_workspace[:], engine.back_workspace[:], stack.workspace[:] = theta[:cut], theta[cut:], theta[cut:]
    timings: list[StackTiming] = []
    for rows, tokens in order.shapes:
        fit = 1 if isinstance(found, NoStack) else adapters_that_fit(found, rows, memory)
        counts = [count for count in COUNTS if count <= fit]
        batch = make_batch(bundle, rows, tokens)
        boundary = engine.front(batch)
        share_s = order.seconds / max(1, len(counts))
        timings += [_timed(engine, stack, boundary, batch, count, share_s, clock) for count in counts]
    return StackProfile(engine="onnxruntime", split=order.split, timings=timings)


def _timed(
    engine: BundleEngine,
    stack: BundleBackStack,
    boundary: Boundary,
    batch: Batch,
    count: int,
    seconds: float,
    clock: Callable[[], float],
) -> StackTiming:
    """Time pairs: an adapter at a time, and all in one call, in turn."""
    single: list[float] = []
    stacked: list[float] = []
    stack.losses(boundary, batch, count)
    began = clock()
    while len(single) < _LEAST_PAIRS or (clock() - began < seconds and len(single) < _MOST_PAIRS):
        started = clock()
        for _ in range(count):
            engine.back(boundary, batch)
        between = clock()
        stack.losses(boundary, batch, count)
        single.append(max(between - started, 1e-9) / count)
        stacked.append(max(clock() - between, 1e-9) / count)
    return StackTiming(
        batch_size=batch.rows,
        tokens=batch.input_ids.shape[1],
        adapters=count,
        single_s=statistics.median(single),
        stacked_s=statistics.median(stacked),
        count=len(single),
    )


def choose_adapters(profile: Profile, split: int, rows: int, tokens: int, fit: int) -> int:
    """Return how many adapters a call takes: the quickest number at the nearest measured shape; 1: one at a time.

    Args:
        profile: the device's, of the bundle in question.
        split: the plan's split.
        rows: rows of a batch.
        tokens: tokens of a long row.
        fit: the most adapters for which there is memory.
    """
    timings = [timing for stack in profile.stacks or [] if stack.split == split for timing in stack.timings]
    if not timings:
        return 1
    shapes = {(timing.batch_size, timing.tokens) for timing in timings}
    nearest = min(sorted(shapes), key=lambda shape: _apart(shape, (rows, tokens)))
    pays = [
        timing
        for timing in timings
        if (timing.batch_size, timing.tokens) == nearest
        and timing.adapters <= fit
        and timing.stacked_s < PAYS_BELOW * timing.single_s
    ]
    return min(pays, key=lambda timing: timing.stacked_s / timing.single_s).adapters if pays else 1


def _apart(one: tuple[int, int], other: tuple[int, int]) -> float:
    """Return how far shapes are apart, in factors."""
    return sum(abs(math.log(a / b)) for a, b in zip(one, other, strict=True))


def main() -> int:
    """Carry out one order."""
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=StackOrder)
    try:
        profile = measure_stack(order)
    except CoveyError as error:
        profile = StackProfile(engine="onnxruntime", split=order.split, timings=[], note=str(error)[:2000])
    sys.stdout.buffer.write(msgspec.json.encode(profile))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
