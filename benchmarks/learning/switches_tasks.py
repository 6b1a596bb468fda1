"""What switches.py trains: bowls with a known curvature, MiniLM's new head, and its LoRA matrices, on real reviews."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.harness.bundles import export_once
from benchmarks.harness.division import DEVICES, device_names, held_out_file, rows_file
from benchmarks.harness.tasks import REVIEWS
from benchmarks.learning.convergence import DEVICE_ROWS, prepare
from benchmarks.learning.convergence_methods import PLANS
from edge_runtime.bundle.folder import open_bundle
from edge_runtime.bundle.layout import front_size
from edge_runtime.data.config import DataConfig
from edge_runtime.data.rows import load_rows
from edge_runtime.engines.choose import Engines
from edge_runtime.engines.quadratic import FloatMatrix, QuadraticEngine

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from edge_runtime.values import FloatVector

LOGIT_SCALE = 10.0
"""Of the new head, as in convergence.py."""


@dataclass(frozen=True)
class Task:
    """What is trained.

    Attributes:
        start: the adapter before the first round.
        engine: the engine of a device, by its index.
        rows: a device's rows.
        loss: the held-out loss of an adapter, on ``validation`` or ``test``.
        front_size: parameters of the front block.
        front_share: what a front pass costs, as a share of a whole forward pass.
        devices: number of devices.
        batch_size: rows per step.
        budget: forward equivalents per device and round.
        rounds: number of rounds.
        curvature: the curvature of each parameter up to a factor, float64, (parameters,): a bowl's true one, or the
            head's at its start on the validation rows; None: it is not known.
    """

    start: FloatVector
    engine: Callable[[int], Any]
    rows: Callable[[int], Any]
    loss: Callable[[FloatVector, str], float]
    front_size: int
    front_share: float
    devices: int
    batch_size: int
    budget: float
    rounds: int
    curvature: FloatMatrix | None = None


class NoRows:
    """Rows of a task whose engine does not look at them."""

    def __len__(self) -> int:
        return 1

    def batch(self, _indices: Sequence[int]) -> None:
        """Return no batch."""


SIZE = 400


def bowl(kind: str) -> Task:
    """Return a bowl over 400 parameters, with one optimum per device around the common one.

    ``even``: every parameter has curvature 1. ``few``: one in twenty has curvature 100, all others 0.1, so that nearly
    all of the gradient is in 20 parameters: the best case for a preconditioner. ``steep``: curvatures from 0.01 to 100,
    evenly on a logarithmic scale.
    """
    rng = np.random.Generator(np.random.PCG64(7))
    curvature = {
        "even": np.ones(SIZE),
        "few": np.where(np.arange(SIZE) % 20 == 0, 100.0, 0.1),
        "steep": rng.permutation(np.logspace(-2, 2, SIZE)),
    }[kind]
    curvature *= SIZE / curvature.sum()
    optimum = rng.normal(size=SIZE)
    engines = [
        QuadraticEngine(np.diag(curvature), optimum + 0.1 * rng.normal(size=SIZE), SIZE // 2) for _ in range(DEVICES)
    ]
    common = QuadraticEngine(np.diag(curvature), optimum, SIZE // 2)
    start: FloatVector = np.zeros(SIZE, np.float32)
    unit = common.loss(start)
    return Task(
        start,
        lambda device: engines[device],
        lambda _device: NoRows(),
        lambda theta, _which: common.loss(theta) / unit,
        SIZE // 2,
        0.5,
        DEVICES,
        1,
        40.0,
        40,
        curvature,
    )


class HeadEngine:
    """A linear head on features that are computed once: all of its parameters are in the back block.

    Args:
        features: float32, (rows, width).
        labels: int64, (rows,), 0 or 1.
    """

    def __init__(self, features: FloatVector, labels: NDArray[np.int64]) -> None:
        self._features, self._labels = features, labels
        self.front_workspace: FloatVector = np.zeros(0, np.float32)
        self.back_workspace: FloatVector = np.zeros(2 * (features.shape[1] + 1), np.float32)

    def front_reads(self, _batch: object) -> list[slice]:
        """See Engine."""
        return []

    def back_reads(self, _batch: object) -> list[slice]:
        """See Engine."""
        return [slice(0, self.back_workspace.size)]

    def front(self, batch: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows of a batch."""
        return batch

    def back(self, boundary: NDArray[np.int64], _batch: object) -> float:
        """Return the mean cross-entropy of rows, in nats."""
        return self.loss(self.back_workspace, boundary)

    def mean_squares(self) -> FloatMatrix:
        """Return the mean square of each feature; the curvature of its weights at a zero head is proportional to it."""
        squares: FloatMatrix = np.square(self._features.astype(np.float64)).mean(axis=0)
        return squares

    def loss(self, theta: FloatVector, rows: NDArray[np.int64] | slice = slice(None)) -> float:
        """Return the mean cross-entropy of rows at a head, in nats, computed in float64."""
        weights, bias = theta[:-2].reshape(2, -1).astype(np.float64), theta[-2:].astype(np.float64)
        logits = LOGIT_SCALE * (self._features[rows] @ weights.T + bias)
        margins = np.where(self._labels[rows] == 1, logits[:, 1] - logits[:, 0], logits[:, 0] - logits[:, 1])
        return float(np.logaddexp(0, -margins).mean())


class Indices:
    """Rows whose batch is the list of their indexes."""

    def __init__(self, n: int) -> None:
        self._n = n

    def __len__(self) -> int:
        return self._n

    def batch(self, indices: Sequence[int]) -> NDArray[np.int64]:
        """Return the indexes."""
        return np.array(indices)


def head(workdir: Path) -> Task:
    """Return MiniLM's new head alone, from zero; features are computed once, as a cached front does it."""
    from edge_runtime.data.examples import read_rows
    from export.model.head_init import features_of
    from export.model.tasks import PooledClassifier, default_pooling
    from export.source.folder import look_at
    from export.source.loading import load_model
    from export.source.tokenizer import load_tokenizer

    setup = PLANS["minilm"].setup
    paths = prepare("minilm", "lora", REVIEWS, setup, workdir)
    root, folder = Path(paths["root"]), look_at(Path(paths["model_dir"]))
    labels = open_bundle(Path(paths["bundle"])).manifest.task.labels
    tokenizer = load_tokenizer(folder)
    model = PooledClassifier(load_model(folder, "base"), 2, default_pooling(folder), 1.0).eval()

    def engine(path: Path) -> tuple[HeadEngine, int]:
        rows = read_rows(path, labels)
        texts = [row.text for row in rows]
        features = features_of(model, tokenizer, texts, setup.max_tokens, tokenizer.pad_token_id or 0).numpy()
        return HeadEngine(features, np.array([row.label for row in rows])), len(rows)

    made = [engine(rows_file(root / DEVICE_ROWS, name)) for name in device_names()]
    held_out = {which: engine(held_out_file(root, which))[0] for which in ("validation", "test")}
    start = np.zeros_like(made[0][0].back_workspace)
    squares = held_out["validation"].mean_squares()
    return Task(
        start,
        lambda device: made[device][0],
        lambda device: Indices(made[device][1]),
        lambda theta, which: held_out[which].loss(theta),
        0,
        0.0,
        DEVICES,
        16,
        64.0,
        20,
        np.concatenate([squares, squares, np.ones(2)]),
    )


def lora(workdir: Path, *, from_activations: bool) -> Task:
    """Return MiniLM's LoRA matrices and its new head, split at layer 4 of 6, as convergence.py trains them.

    Args:
        workdir: rows and bundles.
        from_activations: whether LoRA's A starts from the activations of the validation rows, not at random.
    """
    plan = PLANS["minilm"]
    paths = prepare("minilm", "lora", REVIEWS, plan.setup, workdir)
    root, exported = Path(paths["root"]), Path(paths["bundle"])
    if from_activations:
        flags = ("--max-tokens", str(plan.setup.max_tokens), *plan.setup.export_flags)
        public = ("--lora-init", "activations", str(held_out_file(root, "validation")))
        exported = export_once(Path(paths["model_dir"]), root / "bundle-activations", *flags, *public)
    bundle = open_bundle(exported)
    engine = Engines(threads=1).make_engine(bundle, plan.split)
    rows = [load_rows(bundle, DataConfig(str(rows_file(root / DEVICE_ROWS, name)))) for name in device_names()]
    held_out = {
        which: load_rows(bundle, DataConfig(str(held_out_file(root, which)))) for which in ("validation", "test")
    }
    size = front_size(bundle.manifest.parameters, plan.split)

    def loss(theta: FloatVector, which: str) -> float:
        engine.front_workspace[:], engine.back_workspace[:] = theta[:size], theta[size:]
        total, all_rows = 0.0, held_out[which]
        for start in range(0, len(all_rows), plan.batch_size):
            batch = all_rows.batch(range(start, min(start + plan.batch_size, len(all_rows))))
            total += engine.back(engine.front(batch), batch) * batch.rows
        return total / len(all_rows)

    return Task(
        bundle.initial_adapter(),
        lambda _device: engine,
        lambda device: rows[device],
        loss,
        size,
        plan.split / plan.setup.layers,
        DEVICES,
        8,
        8.0,
        8,
    )


def task_of(name: str, workdir: Path) -> Task:
    """Return a task by its name."""
    if name in ("even", "few", "steep"):
        return bowl(name)
    return head(workdir) if name == "head" else lora(workdir, from_activations=name == "lora-init")
