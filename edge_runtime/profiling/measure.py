"""Measures a device's profile: every graph of a bundle in a process of its own, then rates, link and sensors."""

from __future__ import annotations

import datetime as dt
import logging
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec
from msgspec import UNSET

from edge_runtime import __version__
from edge_runtime.device.board import Board, run_command
from edge_runtime.engines.providers import CPU_ONLY
from edge_runtime.engines.trial import ONNX_PACKAGES
from edge_runtime.errors import ProfileError
from edge_runtime.host.threads import BLAS_VARIABLES, threads_or_usable
from edge_runtime.perturbation.kernel import kernel_name
from edge_runtime.profiling.rates import perturb_parameters_per_s, replay_parameters_per_s
from edge_runtime.profiling.stacks import StackOrder, run_stack, stack_orders
from edge_runtime.profiling.worker import MeasureOrder, MeasureResult
from edge_runtime.protocol.profile import BundleFacts, GraphProfile, Profile, Provenance, Rates, StackProfile
from edge_runtime.protocol.profile_check import check_profile

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.bundle.levels import Level
    from edge_runtime.bundle.manifest import Manifest, Runtime

_LOG = logging.getLogger(__name__)
_PACKAGES = ("numpy", *ONNX_PACKAGES, "executorch", "tokenizers")
_CLOCK: Literal["perf_counter"] = "perf_counter"
_SHAPES = ((1, 16), (1, 64), (8, 16), (8, 32), (8, 64))


class ProfileOptions(msgspec.Struct, frozen=True):
    """How to measure.

    Attributes:
        threads: threads of one operator; 0: as many as may run at once.
        providers: execution providers of ONNX Runtime, as in edge.toml; graphs of another runtime have none.
        shapes: batch sizes × tokens; empty: a few that the bundle allows.
        seconds: time for each graph and shape.
        sustain_s: duration for which the whole model runs over and over; 0: no such run.
        board: name of the board's profile folder; None: the name by which the board is recognised.
        device: name of the device in its fleet.
    """

    threads: int = 0
    shapes: tuple[tuple[int, int], ...] = ()
    seconds: float = 2.0
    sustain_s: float = 0.0
    board: str | None = None
    device: str | None = None
    providers: tuple[str, ...] = CPU_ONLY


def default_shapes(max_tokens: int) -> list[tuple[int, int]]:
    """Return a few batch sizes × tokens, rows no longer than the bundle's."""
    return list(dict.fromkeys((rows, min(tokens, max_tokens)) for rows, tokens in _SHAPES))


def measure_orders(bundle: Bundle, options: ProfileOptions) -> list[MeasureOrder]:
    """Return an order for each process that measures: all graphs of the manifest, in its order.

    Raises:
        ProfileError: a shape has no rows, or more tokens than the bundle's rows can have.
    """
    manifest = bundle.manifest
    shapes = list(options.shapes) or default_shapes(manifest.task.max_tokens)
    for rows, tokens in shapes:
        if rows < 1 or not 2 <= tokens <= manifest.task.max_tokens:
            raise ProfileError(
                f"a batch of {rows} × {tokens} tokens cannot be measured",
                f"rows of this bundle have 2 to {manifest.task.max_tokens} tokens; give --shapes 1x16,8x32",
            )
    orders: list[MeasureOrder] = []
    for unit in _units(manifest):
        whole = unit.kind == "predict" and not any(order.sustain_s for order in orders)
        order = MeasureOrder(
            bundle=str(bundle.path.resolve()),
            runtime=unit.runtime,
            kind=unit.kind,
            split=unit.split,
            level=unit.level,
            threads=options.threads,
            shapes=shapes,
            seconds=options.seconds,
            sustain_s=options.sustain_s if whole else 0.0,
            providers=options.providers,
        )
        orders.append(order)
    return orders


@dataclass(frozen=True)
class _Unit:
    """Graphs that are loaded together: front and back of a split, the predict graph, or a level's training graph."""

    runtime: Runtime
    kind: Literal["split", "predict", "train"]
    split: int | None = None
    level: Level | None = None


def _units(manifest: Manifest) -> list[_Unit]:
    """Return the graphs that are loaded together, in the manifest's order."""
    units: dict[_Unit, None] = {}
    for graph in manifest.graphs:
        match graph.kind:
            case "front" | "back":
                units[_Unit(graph.runtime, "split", split=graph.split)] = None
            case "predict" | "train":
                units[_Unit(graph.runtime, graph.kind, level=graph.level)] = None
    return list(units)


def run_order(order: MeasureOrder) -> MeasureResult:
    """Carry out one order in a process of its own."""
    command = [sys.executable, "-m", "edge_runtime.profiling.worker"]
    done = subprocess.run(command, input=msgspec.json.encode(order), capture_output=True, check=False)
    if done.returncode < 0:
        return MeasureResult(
            [], f"its process was ended by signal {-done.returncode}: it may need more memory than is free"
        )
    try:
        return msgspec.json.decode(done.stdout, type=MeasureResult)
    except msgspec.DecodeError:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        return MeasureResult([], f"its process failed ({done.returncode}): {said[-1] if said else 'it said nothing'}")


def run_rates(threads: int) -> Rates:
    """Return how fast NumPy multiplies and copies with this many threads (0: all that may run); None: it failed."""
    limit = dict.fromkeys(BLAS_VARIABLES, str(threads_or_usable(threads)))
    command = [sys.executable, "-m", "edge_runtime.profiling.rates"]
    done = subprocess.run(command, capture_output=True, check=False, env=os.environ | limit)
    try:
        return msgspec.json.decode(done.stdout, type=Rates)
    except msgspec.DecodeError:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        _LOG.warning("matrix products could not be timed: %s", said[-1] if said else f"signal {-done.returncode}")
        return Rates()


@dataclass(frozen=True)
class Instruments:
    """What measuring reads: the board, the processes that time graphs and rates, and the clocks.

    Attributes:
        board: the machine.
        run: carries out one order.
        run_stack: times one adapter at a time against many in one call.
        time_rates: times NumPy with a number of threads, between the orders, while the machine is warm.
        wall_clock: returns seconds since the epoch; it may jump, and only dates the profile.
        clock: returns monotonic seconds.
    """

    board: Board = field(default_factory=Board)
    run: Callable[[MeasureOrder], MeasureResult] = run_order
    run_stack: Callable[[StackOrder], StackProfile] = run_stack
    time_rates: Callable[[int], Rates] = run_rates
    wall_clock: Callable[[], float] = time.time
    clock: Callable[[], float] = time.perf_counter


def measure_profile(
    bundle: Bundle,
    options: ProfileOptions,
    *,
    measure_link: Callable[[Rates], Rates] = lambda rates: rates,
    progress: Callable[[int, int, str], None] = lambda _done, _all, _what: None,
    instruments: Instruments | None = None,
) -> Profile:
    """Measure every graph of a bundle on this machine.

    Args:
        bundle: a checked bundle.
        options: how to measure.
        measure_link: adds the link's figures to the rates.
        progress: called before each order with the number of finished orders, the number of all, and its name.
        instruments: what measuring reads; None: this machine's.

    Raises:
        ProfileError: no graph could be measured.
    """
    tools = instruments or Instruments()
    before, began_wall, began = tools.board.read(bundle.path), tools.wall_clock(), tools.clock()
    orders = measure_orders(bundle, options)
    results, multiplied = _measure_graphs(orders, options.threads, tools, progress)
    graphs = [graph for result in results for graph in result.graphs]
    if not any(graph.latencies for graph in graphs):
        raise ProfileError(f"no graph could be measured: {graphs[0].note}", "check it: covey-edge bundle verify BUNDLE")
    stacks = _measure_stacks(bundle, options, tools, progress)
    progress(len(orders), len(orders), "rates and link")
    rates = measure_link(_rates(multiplied, tools.clock))
    measured = Provenance(
        measured_at=dt.datetime.fromtimestamp(began_wall, dt.timezone.utc).isoformat(timespec="seconds"),
        seconds=tools.clock() - began,
        wall_seconds=tools.wall_clock() - began_wall,
        clock=f"{_CLOCK}, {time.get_clock_info(_CLOCK).resolution:g} s",
        covey_version=__version__,
        commit=commit(),
        versions=_versions(),
        threads=max((result.threads or 0 for result in results), default=0),
        warm_up=orders[0].warm_up,
        before=before,
        after=tools.board.read(bundle.path),
        execution_providers=UNSET if options.providers == CPU_ONLY else list(options.providers),
    )
    facts = tools.board.facts(options.board)
    profile = Profile(
        device=options.device,
        facts=facts,
        measured=measured,
        bundle=_bundle_facts(bundle),
        graphs=graphs,
        rates=rates,
        stacks=stacks or UNSET,
    )
    check_profile(profile)
    return profile


def _measure_graphs(
    orders: list[MeasureOrder], threads: int, tools: Instruments, progress: Callable[[int, int, str], None]
) -> tuple[list[MeasureResult], list[Rates]]:
    """Return the results of the orders, each with profiles of its graphs, and NumPy's rates before each order."""
    results: list[MeasureResult] = []
    multiplied: list[Rates] = []
    for done, order in enumerate(orders):
        multiplied.append(tools.time_rates(threads))
        name = " ".join(str(part) for part in (order.kind, order.split, order.level, order.runtime) if part is not None)
        progress(done, len(orders), name)
        result = tools.run(order)
        if not result.graphs:
            result = MeasureResult(_not_measured(order, result.error or "its process returned nothing"))
        results.append(result)
    return results, multiplied


def _measure_stacks(
    bundle: Bundle, options: ProfileOptions, tools: Instruments, progress: Callable[[int, int, str], None]
) -> list[StackProfile]:
    """Return where many adapters in one call pay, for each split that has a stack graph."""
    shapes = list(options.shapes) or default_shapes(bundle.manifest.task.max_tokens)
    orders = stack_orders(bundle, shapes, options.threads, options.seconds, options.providers)
    found = []
    for done, order in enumerate(orders):
        progress(done, len(orders), f"many adapters in one call at split {order.split}")
        found.append(tools.run_stack(order))
    return found


def _rates(multiplied: list[Rates], clock: Callable[[], float]) -> Rates:
    return Rates(
        perturb_parameters_per_s=perturb_parameters_per_s(clock),
        replay_parameters_per_s=replay_parameters_per_s(clock),
        matmul_flop_per_s=_median([found.matmul_flop_per_s for found in multiplied]),
        copy_bytes_per_s=_median([found.copy_bytes_per_s for found in multiplied]),
    )


def _bundle_facts(bundle: Bundle) -> BundleFacts:
    manifest = bundle.manifest
    return BundleFacts(
        sha256=bundle.sha256,
        model=manifest.model.name,
        layers=manifest.model.layers,
        trainable_parameters=manifest.parameters[-1].stop,
    )


def _median(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _not_measured(order: MeasureOrder, why: str) -> list[GraphProfile]:
    note = why[:2000]
    if order.kind == "split":
        return [
            GraphProfile(kind=kind, engine=order.runtime, split=order.split, latencies=[], note=note)
            for kind in ("front", "back")
        ]
    return [GraphProfile(kind=order.kind, engine=order.runtime, level=order.level, latencies=[], note=note)]


def commit() -> str | None:
    """Return the git commit of this Covey; None where it is not a checkout."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    printed = run_command(["git", "-C", str(root), "rev-parse", "HEAD"])
    return None if printed is None else printed.strip()


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "kernel": kernel_name()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
