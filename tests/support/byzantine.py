"""A fleet that learns a softmax classifier with the real steps, aggregation and replay; some of its devices attack."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from edge_runtime.bundle.adapter import adapter_sha256
from edge_runtime.bundle.layout import Parameter
from edge_runtime.forward_only.replay import replay
from edge_runtime.forward_only.round import RoundSettings, train_round
from edge_runtime.protocol.round_log import pack_scalars
from edge_runtime.protocol.step_rule import StepRule
from edge_runtime.values import FloatVector
from server.job.job import Job
from server.rounds.aggregate import aggregate
from server.rounds.agreement import delta_agreement
from server.rounds.merge import Delta
from server.storage.adapters import RoundBase
from server.storage.records import RoundPlan, TakenReport

FEATURES, CLASSES = 16, 4
PARAMETERS = [
    Parameter("bias", [CLASSES], 0, 0),
    Parameter("weight", [FEATURES, CLASSES], 1, CLASSES),
]
SIZE = PARAMETERS[-1].stop
Attack = Callable[[FloatVector], FloatVector]
"""Turns the scalars (or the delta) of an honest device into those that the device sends."""


def flip_ten_times(honest: FloatVector) -> FloatVector:
    return -10 * honest


def unchanged(honest: FloatVector) -> FloatVector:
    return honest


def flip(honest: FloatVector) -> FloatVector:
    return -honest


@dataclass
class LabelledRows:
    """Rows of one device: features, float64 (rows, FEATURES), and labels."""

    x: np.ndarray[Any, Any]
    y: np.ndarray[Any, Any]

    def __len__(self) -> int:
        return len(self.y)

    def batch(self, indices: Sequence[int]) -> Any:
        return LabelledRows(self.x[list(indices)], self.y[list(indices)])

    def logits(self, theta: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        found: np.ndarray[Any, Any] = self.x @ theta[CLASSES:].reshape(FEATURES, CLASSES) + theta[:CLASSES]
        return found

    def loss(self, theta: np.ndarray[Any, Any]) -> float:
        logits = self.logits(theta.astype(np.float64))
        logits -= logits.max(axis=1, keepdims=True)
        picked = logits[np.arange(len(self)), self.y]
        return float(np.mean(np.log(np.exp(logits).sum(axis=1)) - picked))

    def accuracy(self, theta: np.ndarray[Any, Any]) -> float:
        return float(np.mean(self.logits(theta.astype(np.float64)).argmax(axis=1) == self.y))

    def gradient(self, theta: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        logits = self.logits(theta.astype(np.float64))
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        p[np.arange(len(self)), self.y] -= 1
        return np.concatenate([p.mean(axis=0), (self.x.T @ p / len(self)).reshape(-1)])


class SoftmaxEngine:
    """The engine of these rows; see engines.engine.Engine. The bias is the front block."""

    def __init__(self) -> None:
        self.front_workspace: FloatVector = np.zeros(CLASSES, dtype=np.float32)
        self.back_workspace: FloatVector = np.zeros(SIZE - CLASSES, dtype=np.float32)

    def front_reads(self, batch: Any) -> list[slice]:  # noqa: ARG002
        return [slice(0, CLASSES)]

    def back_reads(self, batch: Any) -> list[slice]:  # noqa: ARG002
        return [slice(0, SIZE - CLASSES)]

    def front(self, batch: Any) -> FloatVector:  # noqa: ARG002
        return self.front_workspace.copy()

    def back(self, boundary: FloatVector, batch: Any) -> float:
        return float(batch.loss(np.concatenate([boundary, self.back_workspace])))


def fleet_rows(devices: int, alpha: float | None, seed: int, rows: int = 60) -> tuple[list[LabelledRows], LabelledRows]:
    """Return the rows of each device and held-out rows; the shares of labels are Dirichlet(alpha), None: equal."""
    rng = np.random.Generator(np.random.PCG64([seed, devices]))
    centres = rng.normal(size=(CLASSES, FEATURES))

    def drawn(shares: np.ndarray[Any, Any], count: int) -> LabelledRows:
        y = rng.choice(CLASSES, size=count, p=shares)
        return LabelledRows(centres[y] + 1.5 * rng.normal(size=(count, FEATURES)), y)

    equal = np.full(CLASSES, 1 / CLASSES)
    parts = [drawn(equal if alpha is None else rng.dirichlet([alpha] * CLASSES), rows) for _ in range(devices)]
    return parts, drawn(equal, 1000)


@dataclass
class Trained:
    """What a run gave: the adapter, its held-out loss and accuracy, and the cosines of each round."""

    theta: FloatVector
    loss: float
    accuracy: float
    agreement: list[dict[str, float]] = field(default_factory=list)


def train(job: Job, parts: list[LabelledRows], held_out: LabelledRows, attacks: dict[int, Attack]) -> Trained:
    """Run a job's forward-only rounds with real steps; ``attacks`` has what some devices make of their scalars."""
    theta: FloatVector = np.zeros(SIZE, dtype=np.float32)
    engine, mean_square, agreement = SoftmaxEngine(), None, []
    for index in range(job.rounds):
        rule, reports = job.rule_of(index), {}
        for number, rows in enumerate(parts):
            name = f"device-{number}"
            settings = RoundSettings(job.seed, index, name, rule, job.steps, job.batch_size, mean_square)
            result = train_round(engine, theta, rows, settings)
            assert result is not None
            sent = attacks.get(number, unchanged)(result.scalars)
            reports[name] = TakenReport(pack_scalars(sent), len(rows))
        made = aggregate(
            PARAMETERS, job, index, RoundPlan(1, rule), RoundBase(adapter_sha256(theta), None, mean_square), reports
        )
        theta, mean_square = replay(theta, made.log), made.mean_square
        agreement.append(made.agreement)
    return Trained(theta, held_out.loss(theta), held_out.accuracy(theta), agreement)


def train_deltas(rounds: int, parts: list[LabelledRows], held_out: LabelledRows, attacks: dict[int, Attack]) -> Trained:
    """Average the deltas of five gradient steps of every device, round after round, and compare the devices."""
    theta: FloatVector = np.zeros(SIZE, dtype=np.float32)
    rng = np.random.Generator(np.random.PCG64(5))
    agreement = []
    for _ in range(rounds):
        deltas = {}
        for number, rows in enumerate(parts):
            local = theta.astype(np.float64)
            for _step in range(5):
                local -= 0.1 * rows.batch(rng.choice(len(rows), 8).tolist()).gradient(local)
            moved = (local - theta).astype(np.float32)
            deltas[f"device-{number}"] = Delta(1.0, frozenset({0, 1}), attacks.get(number, unchanged)(moved))
        agreement.append(delta_agreement(PARAMETERS, 2, deltas))
        theta = theta + np.mean([delta.movement for delta in deltas.values()], axis=0).astype(np.float32)
    return Trained(theta, held_out.loss(theta), held_out.accuracy(theta), agreement)


def softmax_job(**changes: Any) -> Job:
    """A job for such a fleet."""
    rule = StepRule(back_perturbations=8, learning_rate=0.05, shared_directions=True)
    step = msgspec.structs.replace(rule, **changes.pop("step", {}))
    job = Job(name="job", eval_file="unused", rounds=30, steps=2, batch_size=8, weighting="uniform", step=step)
    return msgspec.structs.replace(job, min_reports=3, **changes)
