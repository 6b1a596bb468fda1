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
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from edge_runtime import __version__
from edge_runtime.device.board import Board, run_command
from edge_runtime.errors import ProfileError
from edge_runtime.perturbation.kernel import kernel_name
from edge_runtime.profiling.rates import perturb_parameters_per_s, replay_parameters_per_s
from edge_runtime.profiling.worker import WorkOrder, WorkResult
from edge_runtime.protocol.profile import BundleFacts, GraphProfile, Profile, Provenance, Rates
from edge_runtime.protocol.profile_check import check_profile

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.bundle.manifest import Manifest, Runtime

_LOG = logging.getLogger(__name__)
_PACKAGES = ("numpy", "onnxruntime", "executorch", "tokenizers")
_THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
_CLOCK: Literal["perf_counter"] = "perf_counter"
_SHAPES = ((1, 16), (1, 64), (8, 16), (8, 32), (8, 64))


class ProfileOptions(msgspec.Struct, frozen=True):
    """How to measure.

    Attributes:
        threads: of one operator; 0: one a core.
        shapes: batch sizes × tokens; empty: a few that the bundle allows.
        seconds: for each graph and shape.
        sustain_s: for so long the whole model runs over and over; 0: not at all.
        board: name of the board's profile folder; None: as it is recognised.
        device: name of the device in its fleet.
    """

    threads: int = 0
    shapes: tuple[tuple[int, int], ...] = ()
    seconds: float = 2.0
    sustain_s: float = 0.0
    board: str | None = None
    device: str | None = None


def default_shapes(max_tokens: int) -> list[tuple[int, int]]:
    """Return a few batch sizes × tokens, rows no longer than the bundle's."""
    return list(dict.fromkeys((rows, min(tokens, max_tokens)) for rows, tokens in _SHAPES))


def work_orders(bundle: Bundle, options: ProfileOptions) -> list[WorkOrder]:
    """Return what to measure, one process each, in the manifest's order: whatever graphs it lists.

    Raises:
        ProfileError: a shape has more tokens than the bundle's rows can have.
    """
    manifest = bundle.manifest
    shapes = list(options.shapes) or default_shapes(manifest.task.max_tokens)
    for rows, tokens in shapes:
        if rows < 1 or not 2 <= tokens <= manifest.task.max_tokens:
            raise ProfileError(
                f"a batch of {rows} × {tokens} tokens cannot be measured",
                f"rows of this bundle have 2 to {manifest.task.max_tokens} tokens; give --shapes 1x16,8x32",
            )
    orders: list[WorkOrder] = []
    for runtime, kind, number in _units(manifest):
        whole = kind == "predict" and not any(order.sustain_s for order in orders)
        order = WorkOrder(
            bundle=str(bundle.path.resolve()),
            runtime=runtime,
            kind=kind,
            number=number,
            threads=options.threads,
            shapes=shapes,
            seconds=options.seconds,
            sustain_s=options.sustain_s if whole else 0.0,
        )
        orders.append(order)
    return orders


def _units(manifest: Manifest) -> list[tuple[Runtime, Literal["split", "predict", "train"], int | None]]:
    """Return what is loaded together: runtime, kind and number."""
    units: dict[tuple[Runtime, Literal["split", "predict", "train"], int | None], None] = {}
    for graph in manifest.graphs:
        match graph.kind:
            case "front" | "back":
                units[graph.runtime, "split", graph.split] = None
            case "predict" | "train":
                units[graph.runtime, graph.kind, graph.level] = None
    return list(units)


def run_order(order: WorkOrder) -> WorkResult:
    """Do one order in a process of its own."""
    command = [sys.executable, "-m", "edge_runtime.profiling.worker"]
    done = subprocess.run(command, input=msgspec.json.encode(order), capture_output=True, check=False)
    if done.returncode < 0:
        return WorkResult(
            [], f"its process was ended by signal {-done.returncode}: it may need more memory than is free"
        )
    try:
        return msgspec.json.decode(done.stdout, type=WorkResult)
    except msgspec.DecodeError:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        return WorkResult([], f"its process failed ({done.returncode}): {said[-1] if said else 'it said nothing'}")


def run_rates(threads: int) -> Rates:
    """Return how fast NumPy multiplies and copies with so many threads (0: one a core); unknown: it did not work."""
    limit = {} if threads == 0 else dict.fromkeys(_THREAD_VARIABLES, str(threads))
    command = [sys.executable, "-m", "edge_runtime.profiling.rates"]
    done = subprocess.run(command, capture_output=True, check=False, env=os.environ | limit)
    try:
        return msgspec.json.decode(done.stdout, type=Rates)
    except msgspec.DecodeError:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        _LOG.warning("matrix products could not be timed: %s", said[-1] if said else f"signal {-done.returncode}")
        return Rates()


def measure_profile(
    bundle: Bundle,
    options: ProfileOptions,
    *,
    measure_link: Callable[[Rates], Rates] = lambda rates: rates,
    progress: Callable[[int, int, str], None] = lambda _done, _all, _what: None,
    board: Board | None = None,
    run: Callable[[WorkOrder], WorkResult] = run_order,
    time_rates: Callable[[int], Rates] = run_rates,
    wall_clock: Callable[[], float] = time.time,
    clock: Callable[[], float] = time.perf_counter,
) -> Profile:
    """Measure every graph of a bundle on this machine.

    Args:
        bundle: a checked bundle.
        options: how.
        measure_link: adds the link's figures to the rates.
        progress: told what comes next: how many are done, of how many, its name.
        board: the machine; None: this one.
        run: does one order.
        time_rates: times what a busy machine gives between the orders.
        wall_clock: seconds since the epoch; may jump, only dates the profile.
        clock: monotonic seconds.

    Raises:
        ProfileError: no graph could be measured.
    """
    board = board or Board()
    before, began_wall, began = board.read(bundle.path), wall_clock(), clock()
    orders = work_orders(bundle, options)
    graphs: list[GraphProfile] = []
    multiplied: list[Rates] = []
    for done, order in enumerate(orders):
        multiplied.append(time_rates(options.threads))
        progress(
            done, len(orders), " ".join(str(x) for x in (order.kind, order.number, order.runtime) if x is not None)
        )
        result = run(order)
        graphs += result.graphs or _not_measured(order, result.error or "nothing came back")
    if not any(graph.latencies for graph in graphs):
        raise ProfileError(f"no graph could be measured: {graphs[0].note}", "check it: covey-edge bundle verify BUNDLE")
    progress(len(orders), len(orders), "rates and link")
    rates = measure_link(
        Rates(
            perturb_parameters_per_s=perturb_parameters_per_s(clock),
            replay_parameters_per_s=replay_parameters_per_s(clock),
            matmul_flop_per_s=_median([found.matmul_flop_per_s for found in multiplied]),
            copy_bytes_per_s=_median([found.copy_bytes_per_s for found in multiplied]),
        )
    )
    resolution = time.get_clock_info(_CLOCK).resolution
    manifest = bundle.manifest
    profile = Profile(
        device=options.device,
        facts=board.facts(options.board),
        measured=Provenance(
            measured_at=dt.datetime.fromtimestamp(began_wall, dt.timezone.utc).isoformat(timespec="seconds"),
            seconds=clock() - began,
            wall_seconds=wall_clock() - began_wall,
            clock=f"{_CLOCK}, {resolution:g} s",
            covey_version=__version__,
            commit=commit(),
            versions=_versions(),
            threads=options.threads,
            warm_up=orders[0].warm_up,
            before=before,
            after=board.read(bundle.path),
        ),
        bundle=BundleFacts(
            sha256=bundle.sha256,
            model=manifest.model.name,
            layers=manifest.model.layers,
            trainable_parameters=manifest.parameters[-1].stop,
        ),
        graphs=graphs,
        rates=rates,
    )
    check_profile(profile)
    return profile


def _median(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _not_measured(order: WorkOrder, why: str) -> list[GraphProfile]:
    note = why[:2000]
    if order.kind == "split":
        return [
            GraphProfile(kind=kind, engine=order.runtime, split=order.number, latencies=[], note=note)
            for kind in ("front", "back")
        ]
    return [GraphProfile(kind=order.kind, engine=order.runtime, level=order.number, latencies=[], note=note)]


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
