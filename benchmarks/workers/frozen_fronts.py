"""Routines of a frozen front: steps and gradients with looked-up activations, for the first time, and rivals."""

from __future__ import annotations

import atexit
import shutil
import tempfile
import time
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from benchmarks.workers.routines import OwnTime, bundle_of, rule_of
from edge_runtime.data.rows import EncodedRows
from edge_runtime.forward_only.directions import step_seeds
from edge_runtime.forward_only.step import spzo_step

if TYPE_CHECKING:
    from benchmarks.workers.routines import Routines, Settings
    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.bundle.levels import Level
    from edge_runtime.bundle.manifest import Graph
    from edge_runtime.data.batch import Batch
    from edge_runtime.engines.bundle_training import BundleTrainingEngine
    from edge_runtime.engines.choose import Engines
    from edge_runtime.fronts.front_folder import FrontRows
    from edge_runtime.fronts.front_key import Precision
    from edge_runtime.fronts.frozen_training import FrozenTraining
    from edge_runtime.values import FloatVector


def ragged_rows(settings: Settings) -> EncodedRows:
    """Return random rows whose lengths lie between a quarter of ``tokens`` and ``tokens``."""
    rng = np.random.Generator(np.random.PCG64(1))
    lengths = rng.integers(settings["tokens"] // 4, settings["tokens"] + 1, settings["rows"])
    lengths[0] = settings["tokens"]
    rows = [rng.integers(1000, 2000, length).tolist() for length in lengths]
    labels: list[int] = [int(label) for label in rng.integers(0, 2, len(rows))]
    return EncodedRows(rows, labels, 0)


def ragged_batch(settings: Settings) -> Batch:
    """Return all rows of ragged_rows in one batch."""
    rows = ragged_rows(settings)
    return rows.batch(range(len(rows)))


def precision_of(settings: Settings) -> Precision:
    """Return in which floating-point numbers activations are kept; float32 where the settings do not say it."""
    precision: Precision = settings.get("precision", "float32")
    return precision


def own_folder() -> Path:
    """Return a new folder that is removed when the process ends."""
    root = Path(tempfile.mkdtemp(prefix="covey-fronts-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return root


def frozen_front(settings: Settings) -> Routines:
    """All routines run on the same batch of rows of several lengths.

    ``warm``: a step whose activations are kept; ``lookup``: its lookups alone. ``cold``: the first one, which runs the
    front and keeps what it gives. ``nowhere``: a step without a file. ``trained``: today's step, with the front's
    directions. ``back``: the step's back passes alone, with nothing perturbed. ``row``: the front on the longest row;
    ``loaded_row``: the same with the front's graph loaded for it.
    """
    from edge_runtime.engines.choose import Engines
    from edge_runtime.fronts.front_folder import FrontFolder
    from edge_runtime.fronts.front_key import front_key
    from edge_runtime.fronts.frozen_engine import FrozenFront

    bundle, batch, rule = bundle_of(settings), ragged_batch(settings), rule_of(settings)
    frozen_rule = msgspec.structs.replace(rule, front="frozen")
    engines, theta = Engines(threads=settings["threads"]), bundle.initial_adapter()
    engine = engines.make_engine(bundle, settings["split"])
    front, task = theta[: engine.front_workspace.size], bundle.manifest.task
    key = front_key(bundle, settings["split"], front, engines, precision_of(settings))
    root = own_folder()
    kept = FrontFolder(root / "warm", 10**9).open(key, settings["rows"])
    emptied = FrontFolder(root / "cold", 10**9).open(key, settings["rows"])
    warm, nowhere, cold = (FrozenFront(engine, front, task, rows, key.precision) for rows in (kept, None, emptied))
    boundary, row = engine.front(batch), ragged_rows(settings).batch([0])
    counter = iter(range(10**9))

    def step_of(made: FrozenFront) -> None:
        spzo_step(made, theta, batch, frozen_rule, step_seeds(frozen_rule, 0, 0, "d", next(counter)))

    def first_step() -> OwnTime:
        assert emptied is not None  # noqa: S101 a new folder
        emptied.clear()
        started = time.process_time()
        step_of(cold)
        return OwnTime(time.process_time() - started)

    def backs() -> None:
        for _ in range(2 * rule.back_perturbations):
            engine.back(boundary, batch)

    def loaded_row() -> None:
        engine.close_front()
        engine.front_arrays(row)

    return {
        "row": lambda: engine.front_arrays(row),
        "loaded_row": loaded_row,
        "warm": lambda: step_of(warm),
        "cold": first_step,
        "nowhere": lambda: step_of(nowhere),
        "trained": lambda: spzo_step(engine, theta, batch, rule, step_seeds(rule, 0, 0, "d", next(counter))),
        "back": backs,
        "lookup": lambda: warm.front(batch),
    }


def frozen_training(settings: Settings) -> Routines:
    """Gradients at ``level``, of a batch of rows of several lengths, behind a frozen front at ``split``.

    ``warm``: the front is looked up. ``bare``: what crosses the cut is given. ``whole``: the level's graph of the whole
    model. ``full``: gradients of all layers.
    """
    bundle, batch, level = bundle_of(settings), ragged_batch(settings), settings["level"]
    engine, frozen, graphs = _behind(settings, bundle)
    theta, last, layers = bundle.initial_adapter(), _last(bundle, level), range(bundle.manifest.model.layers)
    out, boundary = np.zeros_like(theta), frozen.front.arrays(batch)
    return {
        "warm": lambda: frozen.gradients(theta, last, batch, out, whole=True),
        "bare": lambda: engine.gradients_behind(graphs[level], theta, last, batch, boundary, out),
        "whole": lambda: engine.gradients(theta, last, batch, out, whole=True),
        "full": lambda: engine.gradients(theta, layers, batch, out),
    }


def frozen_gradients(settings: Settings) -> Routines:
    """``run``: the looked-up gradient of ``frozen_training`` alone, in a process that does what a device does.

    It runs the front for the rows that are not kept and lets go of it, and then trains. Activations are kept in the
    folder ``fronts`` of the settings, or in one of the process's own: then none is there when it starts.
    """
    bundle, rows = bundle_of(settings), ragged_rows(settings)
    _, frozen, _ = _behind(settings, bundle)
    theta, last, batch = bundle.initial_adapter(), _last(bundle, settings["level"]), rows.batch(range(len(rows)))
    out = np.zeros_like(theta)
    frozen.fill(rows, range(len(rows)), lambda: True)
    return {"run": lambda: frozen.gradients(theta, last, batch, out, whole=True)}


def frozen_steps(settings: Settings) -> Routines:
    """``run``: a forward-only step behind a frozen front, in a process that does what a device does.

    See ``frozen_gradients``.
    """
    from edge_runtime.engines.choose import Engines
    from edge_runtime.fronts.frozen_engine import FrozenFront

    bundle, rows, rule = bundle_of(settings), ragged_rows(settings), rule_of(settings)
    frozen_rule, theta, counter = msgspec.structs.replace(rule, front="frozen"), bundle.initial_adapter(), count()
    engines = Engines(threads=settings["threads"])
    engine = engines.make_engine(bundle, settings["split"])
    front = theta[: engine.front_workspace.size]
    kept, start = _opened(settings, bundle, engines, front)
    frozen = FrozenFront(engine, front, bundle.manifest.task, kept, precision_of(settings), start)
    batch = rows.batch(range(len(rows)))
    frozen.fill(rows, range(len(rows)), lambda: True)
    return {
        "run": lambda: spzo_step(frozen, theta, batch, frozen_rule, step_seeds(frozen_rule, 0, 0, "d", next(counter)))
    }


def frozen_libraries(settings: Settings) -> Routines:
    """``run``: nothing, in a process that has loaded what ``frozen_gradients`` and ``frozen_steps`` need."""
    from edge_runtime.bundle import behind
    from edge_runtime.engines import onnx_engine
    from edge_runtime.fronts import front_folder, front_key, frozen_engine, frozen_training

    ragged_batch(settings)
    return {"run": lambda: (behind, onnx_engine, front_folder, front_key, frozen_engine, frozen_training)}


def _behind(settings: Settings, bundle: Bundle) -> tuple[BundleTrainingEngine, FrozenTraining, dict[Level, Graph]]:
    """Return the training engine, its gradients behind the split, and the graphs there by level."""
    from edge_runtime.bundle.behind import find_behind
    from edge_runtime.bundle.layout import front_size
    from edge_runtime.engines.bundle_engine import BundleFront
    from edge_runtime.engines.choose import Engines
    from edge_runtime.fronts.frozen_training import FrozenTraining
    from edge_runtime.fronts.kept_front import KeptFront

    engines, split, task = Engines(threads=settings["threads"]), settings["split"], bundle.manifest.task
    engine = engines.make_training_engine(bundle)
    front = bundle.initial_adapter()[: front_size(bundle.manifest.parameters, split)]
    kept, start = _opened(settings, bundle, engines, front)
    block = BundleFront(bundle, split, engines.opener())
    graphs = find_behind(bundle.path, bundle.manifest, split)
    return (
        engine,
        FrozenTraining(engine, KeptFront(block, front, task, kept, precision_of(settings), start), graphs),
        graphs,
    )


def _opened(
    settings: Settings, bundle: Bundle, engines: Engines, front: FloatVector
) -> tuple[FrontRows | None, str | None]:
    """Return the file of activations in the folder ``fronts`` of the settings, or in a new one; and this start's ID."""
    from edge_runtime.fronts.front_folder import FrontFolder
    from edge_runtime.fronts.front_key import front_key
    from edge_runtime.host.sysfs import read_text

    root = Path(settings["fronts"]) if "fronts" in settings else own_folder()
    key = front_key(bundle, settings["split"], front, engines, precision_of(settings))
    start = read_text(Path("/proc/sys/kernel/random/boot_id"))
    return FrontFolder(root, 10**9).open(key, settings["rows"]), start


def _last(bundle: Bundle, level: Level) -> range:
    """Return the layers that a top level trains."""
    from edge_runtime.bundle.levels import trained_layers

    layers = bundle.manifest.model.layers
    return range(layers - trained_layers(level), layers)
