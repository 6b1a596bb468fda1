"""Routines of the backprop device: loss and gradients at the levels of a bundle's training graphs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from benchmarks.workers.routines import bundle_of, random_batch

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.workers.routines import Routines, Settings
    from edge_runtime.bundle.levels import Level


def levels(settings: Settings) -> Routines:
    """One routine per level of the bundle, named by the level: loss and gradients at it."""
    from edge_runtime.bundle.levels import kind_of
    from edge_runtime.engines.choose import Engines
    from edge_runtime.engines.golden import training_layers

    bundle, batch = bundle_of(settings), random_batch(settings)
    engine, theta = Engines(threads=settings["threads"]).make_training_engine(bundle), bundle.initial_adapter()
    out, layers = np.zeros_like(theta), bundle.manifest.model.layers

    def at(level: Level) -> Callable[[], float]:
        trained, whole = training_layers(level, layers), kind_of(level) == "top"
        return lambda: engine.gradients(theta, trained, batch, out, whole=whole)

    return {str(level): at(level) for level in engine.levels}


def gradients(settings: Settings) -> Routines:
    """``run``: loss and gradients with ``level`` active layers. ``half``: with ``half`` active layers.

    Where both settings are the same, there is ``run`` alone, so that a process can be measured with one level.
    """
    by_level = levels(settings)
    whole, half = (by_level[str(settings[key])] for key in ("level", "half"))
    return {"run": whole} if half is whole else {"run": whole, "half": half}


def micro_batches(settings: Settings) -> Routines:
    """``run``: loss and gradients with ``level`` active layers, on a quarter of the rows at a time."""
    quarter = levels(settings | {"rows": max(1, settings["rows"] // 4)})[str(settings["level"])]

    def run() -> None:
        for _ in range(4):
            quarter()

    return {"run": run}


def all_levels(settings: Settings) -> Routines:
    """``run``: loss and gradients at every level of the bundle, in ascending and then in descending order."""
    at_levels = list(levels(settings).values())

    def run() -> None:
        for at_level in (*at_levels, *reversed(at_levels)):
            at_level()

    return {"run": run}


def libraries(settings: Settings) -> Routines:
    """``run``: nothing, in a process that has loaded the libraries that training needs."""
    from edge_runtime.engines import onnx_engine

    random_batch(settings)
    return {"run": lambda: onnx_engine}
