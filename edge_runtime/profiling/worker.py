"""Measures graphs that a device loads together, in a process of its own, whose peak memory is then theirs.

``python -m edge_runtime.profiling.worker`` reads a MeasureOrder (JSON) from stdin and writes a MeasureResult to stdout.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np

from edge_runtime.bundle.folder import Bundle, open_bundle
from edge_runtime.bundle.levels import Level, kind_of
from edge_runtime.bundle.manifest import CAUSAL_LM, Runtime
from edge_runtime.bundle.memory_need import parameter_bytes
from edge_runtime.data.batch import Batch, pad, pad_completions
from edge_runtime.device.board import Board
from edge_runtime.device.memory import peak_since_reset_bytes, reset_peak, resident_bytes
from edge_runtime.device.power import STARTS_A_PROCESS
from edge_runtime.engines.choose import Engines
from edge_runtime.engines.golden import golden_adapter, golden_cases, training_layers
from edge_runtime.engines.providers import CPU_ONLY
from edge_runtime.errors import CoveyError
from edge_runtime.protocol.profile import GraphProfile, Latency, Sustained

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Run = Callable[[], object]

SUSTAIN_SHARE = 0.1
"""Share of a sustained run, at its start and at its end, whose latencies are compared."""
_SAMPLE_S = 0.25
_SAMPLE_BY_PROCESS_S = 2.0  # a process that is started takes time from what is measured


class MeasureOrder(msgspec.Struct, frozen=True):
    """What to measure.

    Attributes:
        bundle: path of the bundle.
        runtime: whose graphs.
        kind: front and back of a split, the predict graph, or the training graph of a level.
        split: the split, of ``split``.
        level: the level, of ``train``.
        threads: threads of one operator; 0: as many as may run at once.
        providers: execution providers of ONNX Runtime, as in edge.toml.
        shapes: batch sizes × tokens.
        warm_up: runs before the timed ones, at each shape.
        least_runs: smallest number of timed runs at each shape.
        most_runs: largest number of timed runs at each shape.
        seconds: time after which no new run begins, once there are ``least_runs``.
        sustain_s: duration of a further run of the last shape; 0: none.
    """

    bundle: str
    runtime: Runtime
    kind: Literal["split", "predict", "train"]
    split: int | None
    level: Level | None
    threads: int
    shapes: list[tuple[int, int]]
    warm_up: int = 2
    least_runs: int = 5
    most_runs: int = 50
    seconds: float = 2.0
    sustain_s: float = 0.0
    providers: tuple[str, ...] = CPU_ONLY


class MeasureResult(msgspec.Struct, frozen=True):
    """The profiles of the order's graphs, or the error that kept them from being measured.

    Attributes:
        graphs: their profiles; empty where there is an error.
        error: why they could not be measured.
        threads: that one operator had; None: nothing was measured.
    """

    graphs: list[GraphProfile]
    error: str | None = None
    threads: int | None = None


def make_batch(bundle: Bundle, rows: int, tokens: int) -> Batch:
    """Return a full batch of a shape with the repeated tokens of a golden batch; labels do not affect the time."""
    task = bundle.manifest.task
    golden = next(golden_cases(bundle)).batch
    real = golden.input_ids[golden.attention_mask == 1]
    ids = np.resize(real, (rows, tokens)).tolist()
    if task.mask_token_id is not None:
        for row in ids:
            row[:] = [token if token != task.mask_token_id else int(real[0]) for token in row[:-1]] + [
                task.mask_token_id
            ]
    if task.kind == CAUSAL_LM:
        return pad_completions(ids, [max(1, tokens // 2)] * rows, task.pad_token_id)
    return pad(ids, [0] * rows, task.pad_token_id)


def measure(order: MeasureOrder, clock: Callable[[], float] = time.perf_counter) -> list[GraphProfile]:
    """Load what the order names and time it.

    Raises:
        BundleError: a graph cannot be loaded.
        TrainingError: a graph fails at a shape, for example for want of memory.
    """
    bundle = open_bundle(Path(order.bundle))
    batches = [make_batch(bundle, rows, tokens) for rows, tokens in order.shapes]
    theta = golden_adapter(bundle.initial_adapter(), bundle.manifest.golden)
    engines = Engines(order.runtime, order.threads, order.providers)
    base = resident_bytes()  # before the runtime is imported
    started = clock()
    if order.kind == "split":
        return _measure_split(order, bundle, batches, theta, base, started, clock)
    run: Callable[[Batch], object]
    if order.kind == "predict":
        predictor = engines.make_predictor(bundle)

        def run(batch: Batch) -> object:
            return predictor.outputs(theta, batch)

        names: dict[str, Any] = {"kind": "predict"}
        bound = bundle.manifest.graph("predict", runtime=order.runtime)
    else:
        training, out = engines.make_training_engine(bundle), np.zeros_like(theta)
        level = order.level or 1
        layers, is_top = training_layers(level, bundle.manifest.model.layers), kind_of(level) == "top"

        def run(batch: Batch) -> object:
            return training.gradients(theta, layers, batch, out, whole=is_top)

        names = {"kind": "train", "level": level}
        bound = bundle.manifest.training_graph(level, order.runtime)
    run(batches[0])
    load_s = clock() - started
    latencies = [_time(order, clock, lambda b=batch: run(b), batch) for batch in batches]  # type: ignore[misc]
    peak = peak_since_reset_bytes()
    sustained = _sustain(order, clock, lambda: run(batches[-1]), batches[-1])
    return [
        GraphProfile(
            engine=order.runtime,
            load_s=load_s,
            peak_rss_bytes=peak,
            base_rss_bytes=base,
            parameter_bytes=parameter_bytes(bound),
            latencies=latencies,
            sustained=sustained,
            **names,
        )
    ]


def _measure_split(
    order: MeasureOrder,
    bundle: Bundle,
    batches: list[Batch],
    theta: np.ndarray[Any, Any],
    base: int | None,
    started: float,
    clock: Callable[[], float],
) -> list[GraphProfile]:
    """Time front and back; the memory peak is reset in between, if the kernel allows it."""
    engine = Engines(order.runtime, order.threads, order.providers).make_engine(bundle, order.split or 0)
    loaded_s = clock() - started
    cut = engine.front_workspace.size
    np.copyto(engine.front_workspace, theta[:cut])
    engine.front(batches[0])
    front_load_s = clock() - started
    fronts = [_time(order, clock, lambda b=batch: engine.front(b), batch) for batch in batches]  # type: ignore[misc]
    front_peak = peak_since_reset_bytes()
    backs: list[Latency] = []
    boundaries = [engine.front(batch) for batch in batches]
    np.copyto(engine.back_workspace, theta[cut:])
    reset_peak()
    first = clock()
    engine.back(boundaries[0], batches[0])
    back_load_s = loaded_s + clock() - first
    for batch, boundary in zip(batches, boundaries, strict=True):
        backs.append(_time(order, clock, lambda b=batch, y=boundary: engine.back(y, b), batch))  # type: ignore[misc]
    back_peak = peak_since_reset_bytes()

    def graph(kind: Literal["front", "back"], load_s: float, peak: int | None, found: list[Latency]) -> GraphProfile:
        return GraphProfile(
            kind=kind,
            engine=order.runtime,
            split=order.split,
            load_s=load_s,
            peak_rss_bytes=peak,
            base_rss_bytes=base,
            latencies=found,
            parameter_bytes=parameter_bytes(bundle.manifest.graph(kind, order.split, order.runtime)),
        )

    return [graph("front", front_load_s, front_peak, fronts), graph("back", back_load_s, back_peak, backs)]


def _time(order: MeasureOrder, clock: Callable[[], float], run: Run, batch: Batch) -> Latency:
    for _ in range(order.warm_up):
        run()
    times: list[float] = []
    with _power_samples() as watts:
        began = clock()
        while len(times) < order.most_runs:
            started = clock()
            run()
            ended = clock()
            times.append(max(ended - started, 1e-9))
            if len(times) >= order.least_runs and ended - began >= order.seconds:
                break
    return Latency(
        batch_size=batch.rows,
        tokens=batch.input_ids.shape[1],
        median_s=statistics.median(times),
        low_s=_percentile(times, 0.1),
        high_s=_percentile(times, 0.9),
        count=len(times),
        power_w=statistics.mean(watts) if watts else None,
    )


def _sustain(order: MeasureOrder, clock: Callable[[], float], run: Run, batch: Batch) -> Sustained | None:
    if order.sustain_s <= 0:
        return None
    board, began = Board(), clock()
    runs: list[tuple[float, float]] = []
    before = board.read(Path(order.bundle))
    while not runs or clock() - began < order.sustain_s:
        started = clock()
        run()
        runs.append((started - began, clock() - started))
    seconds = clock() - began
    first = [took for at, took in runs if at <= SUSTAIN_SHARE * seconds] or [runs[0][1]]
    last = [took for at, took in runs if at >= (1 - SUSTAIN_SHARE) * seconds] or [runs[-1][1]]
    return Sustained(
        batch_size=batch.rows,
        tokens=batch.input_ids.shape[1],
        seconds=seconds,
        first_s=statistics.median(first),
        last_s=statistics.median(last),
        count=len(runs),
        before=before,
        after=board.read(Path(order.bundle)),
    )


def _percentile(values: Sequence[float], share: float) -> float:
    """Return a percentile (nearest rank) of at least one value."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, math.ceil(share * len(ordered)) - 1))]


@contextlib.contextmanager
def _power_samples() -> Iterator[list[float]]:
    """Collect watts from a thread while the body runs; stays empty where no sensor can be read."""
    samples: list[float] = []
    board, stop = Board(), threading.Event()

    def sample() -> None:
        while not stop.is_set():
            watts, sensor = board.power()
            if watts is None:
                return
            samples.append(watts)
            stop.wait(_SAMPLE_BY_PROCESS_S if sensor in STARTS_A_PROCESS else _SAMPLE_S)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        stop.set()
        thread.join()


def main() -> int:
    """Carry out one order."""
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=MeasureOrder)
    try:
        graphs = measure(order)
        threads = Engines(order.runtime, order.threads, order.providers).operator_threads()
        result = MeasureResult(graphs, threads=threads)
    except CoveyError as error:
        result = MeasureResult([], str(error))
    sys.stdout.buffer.write(msgspec.json.encode(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
