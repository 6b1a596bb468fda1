"""Routines of the forward-only device: step, training round, prediction, and the two blocks on either runtime.

Engines are imported inside the routines: what a worker imports counts in its memory.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.workers.routines import OwnTime, bundle_of, random_batch, rule_of
from edge_runtime.forward_only.directions import step_seeds
from edge_runtime.forward_only.step import spzo_step

if TYPE_CHECKING:
    from benchmarks.workers.routines import Routines, Settings
    from edge_runtime.bundle.manifest import Runtime


def step(settings: Settings) -> Routines:
    """``run``: an SPZO step. ``forwards``: the step's forward passes alone, with nothing perturbed."""
    from edge_runtime.engines.choose import Engines

    bundle, batch, rule = bundle_of(settings), random_batch(settings), rule_of(settings)
    engine = Engines(threads=settings["threads"]).make_engine(bundle, settings["split"])
    theta = bundle.initial_adapter()
    counter = iter(range(10**9))

    def forwards() -> None:
        for _ in range(rule.front_perturbations):
            boundaries = [engine.front(batch), engine.front(batch)]
            for _ in range(rule.back_perturbations):
                for boundary in boundaries:
                    engine.back(boundary, batch)

    return {
        "run": lambda: spzo_step(engine, theta, batch, rule, step_seeds(rule, 0, 0, "d", next(counter))),
        "forwards": forwards,
    }


def train_round(settings: Settings) -> Routines:
    """``run``: a training round of four steps on rows of one length, as a device performs it."""
    from edge_runtime.data.rows import EncodedRows
    from edge_runtime.engines.choose import Engines
    from edge_runtime.forward_only.round import RoundSettings
    from edge_runtime.forward_only.round import train_round as train

    bundle, batch = bundle_of(settings), random_batch(settings)
    engine = Engines(threads=settings["threads"]).make_engine(bundle, settings["split"])
    rows = EncodedRows(batch.input_ids.tolist() * 4, batch.labels.tolist() * 4, 0)
    settings_of_round = RoundSettings(
        0, 0, "d", rule_of(settings), steps=4, batch_size=settings["rows"], mean_square=None
    )
    theta = bundle.initial_adapter()
    return {"run": lambda: train(engine, theta, rows, settings_of_round)}


def inference(settings: Settings) -> Routines:
    """``run``: a prediction for a batch, with mapped weights."""
    from edge_runtime.engines.choose import Engines

    bundle, batch = bundle_of(settings), random_batch(settings)
    predictor, theta = Engines(threads=settings["threads"]).make_predictor(bundle), bundle.initial_adapter()
    return {"run": lambda: predictor.logits(theta, batch)}


def inference_in_memory(settings: Settings) -> Routines:
    """``run``: a prediction for a batch, with weights read into memory, as runtimes do that do not map them."""
    from edge_runtime.engines.choose import Engines

    bundle, batch = bundle_of(settings), random_batch(settings)
    predictor, theta = Engines(threads=settings["threads"]).make_predictor(bundle), np.array(bundle.initial_adapter())
    return {"run": lambda: predictor.logits(theta, batch)}


def blocks_onnxruntime(settings: Settings) -> Routines:
    """``run``: front and back once, on ONNX Runtime."""
    return _blocks("onnxruntime", settings)


def blocks_executorch(settings: Settings) -> Routines:
    """``run``: front and back once, on ExecuTorch."""
    return _blocks("executorch", settings)


def _blocks(runtime: Runtime, settings: Settings) -> Routines:
    from edge_runtime.engines.choose import Engines

    bundle, batch = bundle_of(settings), random_batch(settings)
    engine = Engines(runtime, settings["threads"]).make_engine(bundle, settings["split"])
    theta = bundle.initial_adapter()
    engine.front_workspace[:] = theta[: engine.front_workspace.size]
    engine.back_workspace[:] = theta[engine.front_workspace.size :]
    return {"run": lambda: engine.back(engine.front(batch), batch)}


def load_executorch(settings: Settings) -> Routines:
    """``first_load``: the time it took this process to load the library, both graphs and the mapped weights."""
    from edge_runtime.engines.choose import Engines

    bundle = bundle_of(settings)
    started = time.perf_counter()
    Engines("executorch", settings["threads"]).make_engine(bundle, settings["split"])
    first_load = OwnTime(time.perf_counter() - started)
    return {"first_load": lambda: first_load}
