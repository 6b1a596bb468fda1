"""Engines by name. A runtime is imported when its engine is made: a device that waits stays small."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.bundle.manifest import Runtime
    from edge_runtime.engines.bundle_engine import BundleEngine, BundlePredictor
    from edge_runtime.engines.bundle_training import BundleTrainingEngine


def make_engine(runtime: Runtime, bundle: Bundle, split: int, threads: int = 0) -> BundleEngine:
    """Return front and back of a bundle at a split.

    Args:
        runtime: what runs them; never another one instead.
        bundle: an opened bundle.
        split: one of its splits.
        threads: of one operator; 0 leaves it to the runtime.

    Raises:
        BundleError: the bundle has no graphs for the runtime, or they cannot be loaded.
        ConfigError: the runtime is not installed.
    """
    if runtime == "executorch":
        from edge_runtime.engines.executorch_engine import ExecutorchEngine  # noqa: PLC0415

        return ExecutorchEngine(bundle, split, threads)
    from edge_runtime.engines.onnx_engine import OnnxEngine  # noqa: PLC0415

    return OnnxEngine(bundle, split, threads)


def make_predictor(runtime: Runtime, bundle: Bundle, threads: int = 0) -> BundlePredictor:
    """Return the whole model of a bundle; see make_engine."""
    if runtime == "executorch":
        from edge_runtime.engines.executorch_engine import ExecutorchPredictor  # noqa: PLC0415

        return ExecutorchPredictor(bundle, threads)
    from edge_runtime.engines.onnx_engine import OnnxPredictor  # noqa: PLC0415

    return OnnxPredictor(bundle, threads)


def make_training_engine(runtime: Runtime, bundle: Bundle, threads: int = 0) -> BundleTrainingEngine:
    """Return loss and gradients of a bundle's levels; see make_engine. A level's graph is loaded when it is needed."""
    if runtime == "executorch":
        from edge_runtime.engines.executorch_engine import ExecutorchTrainingEngine  # noqa: PLC0415

        return ExecutorchTrainingEngine(bundle, threads)
    from edge_runtime.engines.onnx_engine import OnnxTrainingEngine  # noqa: PLC0415

    return OnnxTrainingEngine(bundle, threads)
