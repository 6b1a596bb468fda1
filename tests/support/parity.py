"""Is every ONNX graph of a bundle what PyTorch eager is?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from edge_runtime.bundle.folder import Bundle
from edge_runtime.data.batch import pad
from edge_runtime.engines.choose import Engines
from edge_runtime.values import FloatVector
from server.storage.result_folder import write_finished

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.data.batch import Batch
    from edge_runtime.values import FloatVector

TOLERANCE = 1e-5


def assert_parity(
    bundle: Bundle, theta: FloatVector, eager: Callable[[Batch], torch.Tensor], batches: Iterable[Batch]
) -> None:
    """Compare logits and losses of predict and of front∘back at every split with those of a classifier in PyTorch."""
    predictor = Engines(threads=1).make_predictor(bundle)
    engines = [Engines(threads=1).make_engine(bundle, split) for split in bundle.manifest.splits]
    spread = 0.0
    for batch in batches:
        with torch.no_grad():
            logits = eager(batch)
            loss = float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(batch.labels)))
        expected = logits.numpy()
        spread = max(spread, float(np.ptp(expected)))
        assert np.abs(predictor.logits(theta, batch) - expected).max() < TOLERANCE
        for engine in engines:
            engine.front_workspace[:] = theta[: engine.front_workspace.size]
            engine.back_workspace[:] = theta[engine.front_workspace.size :]
            boundary = engine.front(batch)
            assert abs(engine.back(boundary, batch) - loss) < TOLERANCE
            assert np.abs(engine.back_outputs(boundary, batch)["logits"] - expected).max() < TOLERANCE
    assert spread > 1e-2  # the logits that are compared differ from each other


def batches() -> list[Any]:
    """Shapes that were not traced, rows of very different lengths, one row alone, the longest row allowed."""
    rng = np.random.Generator(np.random.PCG64(3))
    shapes = [[4, 11, 2], [7], [32, 2, 2, 30, 5], [2, 2]]
    return [
        pad([rng.integers(4, 50, size=n).tolist() for n in lengths], rng.integers(0, 2, len(lengths)).tolist(), 0)
        for lengths in shapes
    ]


def finished_folder(bundle: Bundle, theta: FloatVector, folder: Path) -> Path:
    write_finished(bundle, theta, folder, {"job": "test"})
    return folder
