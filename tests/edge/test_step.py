"""The step on a bowl whose gradient is known: means converge to the gradient, nothing is left behind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edge_runtime.data.batch import Batch
from edge_runtime.engines.quadratic import QuadraticEngine
from edge_runtime.errors import ConfigError, TrainingError
from edge_runtime.forward_only.coefficients import apply_step, step_coefficients
from edge_runtime.forward_only.directions import StepSeeds, step_seeds
from edge_runtime.forward_only.step import spzo_step
from edge_runtime.perturbation.perturb import BACK, FRONT, rademacher
from edge_runtime.protocol.step_rule import StepRule, check_rule

if TYPE_CHECKING:
    from edge_runtime.values import FloatVector

N, FRONT_SIZE = 24, 10
BATCH = Batch(np.ones((1, 2), np.int64), np.ones((1, 2), np.int64), np.zeros(1, np.int64))


def make_engine(front_size: int = FRONT_SIZE) -> QuadraticEngine:
    rng = np.random.Generator(np.random.PCG64(5))
    root = rng.normal(size=(N, N)) / np.sqrt(N)
    return QuadraticEngine(root @ root.T + 0.1 * np.eye(N), rng.normal(size=N), front_size)


def plain(**changes: Any) -> StepRule:
    fields: dict[str, Any] = {"learning_rate": 1.0, "normalize": "none", "eps": 0.01}
    return StepRule(**(fields | changes))


def estimates(rule: StepRule, theta: FloatVector, steps: int, front_size: int = FRONT_SIZE) -> np.ndarray[Any, Any]:
    """One gradient estimate a step: an update of a plain rule with learning rate 1, its sign turned."""
    engine = make_engine(front_size)
    rows = []
    for step in range(steps):
        seeds = step_seeds(rule, 1, 0, "device", step)
        result = spzo_step(engine, theta, BATCH, rule, seeds)
        coefficients, _ = step_coefficients(result.scalars.tolist(), rule, None)
        moved = np.zeros(N, np.float32)
        apply_step(moved, front_size, seeds, coefficients)
        rows.append(-moved.astype(np.float64))
    return np.array(rows)


@pytest.mark.parametrize(
    "rule",
    [
        plain(variant="nested", front_perturbations=1, back_perturbations=1),
        plain(variant="nested", front_perturbations=2, back_perturbations=3),
        plain(variant="nested", front_perturbations=1, back_perturbations=4, leave_one_out=True),
        plain(variant="clean", front_perturbations=1, back_perturbations=4),
        plain(variant="clean", front_perturbations=3, back_perturbations=1),
    ],
    ids=["nested-1x1", "nested-2x3", "nested-1x4-loo", "clean-1x4", "clean-3x1"],
)
def test_the_mean_estimate_is_the_gradient(rule: StepRule) -> None:
    """Every coordinate of the mean lies within 5 standard errors of the gradient, and the error is small at all."""
    theta = np.linspace(-1, 1, N, dtype=np.float32)
    found = estimates(rule, theta, 3000)
    gradient = make_engine().gradient(theta)
    error = np.abs(found.mean(axis=0) - gradient)
    assert (error <= 5 * found.std(axis=0) / np.sqrt(len(found)) + 1e-3).all()
    assert np.linalg.norm(error) < 0.15 * np.linalg.norm(gradient)


def test_leave_one_out_takes_the_fronts_noise_out_of_the_back() -> None:
    theta = np.linspace(-1, 1, N, dtype=np.float32)
    variance = {
        loo: estimates(plain(back_perturbations=8, leave_one_out=loo), theta, 800)[:, FRONT_SIZE:].var(axis=0).sum()
        for loo in (False, True)
    }
    assert variance[True] < 0.8 * variance[False]


@pytest.mark.parametrize("variant", ["nested", "clean"])
def test_more_back_perturbations_make_a_better_back(variant: str) -> None:
    theta = np.linspace(-1, 1, N, dtype=np.float32)
    variance = [
        estimates(plain(variant=variant, back_perturbations=p2), theta, 400)[:, FRONT_SIZE:].var(axis=0).sum()
        for p2 in (1, 8)
    ]
    assert variance[1] < 0.6 * variance[0]


def test_scalars_are_projections_of_the_gradient() -> None:
    """Central differences are exact on a quadratic: g_ij = gradient · (z_i, z_ij)."""
    theta = np.linspace(-1, 1, N, dtype=np.float32)
    rule = plain(front_perturbations=2, back_perturbations=3)
    seeds = StepSeeds(front=(1, 2), back=(3, 4, 5, 6, 7, 8))
    scalars = spzo_step(make_engine(), theta, BATCH, rule, seeds).scalars
    gradient = make_engine().gradient(theta)
    for index, back in enumerate(seeds.back):
        z = np.concatenate(
            [
                rademacher(seeds.front[index // 3], FRONT, 0, FRONT_SIZE),
                rademacher(back, BACK, 0, N - FRONT_SIZE),
            ]
        )
        assert scalars[index] == pytest.approx(gradient @ z, abs=2e-3)


@pytest.mark.parametrize(
    ("rule", "front_passes", "back_passes"),
    [
        (plain(front_perturbations=2, back_perturbations=5), 4, 20),
        (plain(variant="clean", front_perturbations=2, back_perturbations=5), 5, 14),
    ],
)
def test_activations_are_reused(rule: StepRule, front_passes: int, back_passes: int) -> None:
    engine, calls = make_engine(), {"front": 0, "back": 0}

    class Counting:
        front_workspace, back_workspace = engine.front_workspace, engine.back_workspace
        front_reads, back_reads = engine.front_reads, engine.back_reads

        def front(self, batch: Batch) -> FloatVector:
            calls["front"] += 1
            return engine.front(batch)

        def back(self, boundary: FloatVector, batch: Batch) -> float:
            calls["back"] += 1
            return engine.back(boundary, batch)

    result = spzo_step(Counting(), np.zeros(N, np.float32), BATCH, rule, step_seeds(rule, 0, 0, "d", 0))
    assert (calls["front"], calls["back"]) == (front_passes, back_passes)
    assert (result.front_passes, result.back_passes) == (front_passes, back_passes)
    assert result.scalars.shape == (rule.scalars_per_step,)


def test_a_front_without_parameters_runs_once() -> None:
    rule = plain(back_perturbations=4)
    result = spzo_step(make_engine(0), np.zeros(N, np.float32), BATCH, rule, step_seeds(rule, 0, 0, "d", 0))
    assert result.front_passes == 1
    found = estimates(rule, np.linspace(-1, 1, N, dtype=np.float32), 2000, front_size=0)
    gradient = make_engine().gradient(np.linspace(-1, 1, N, dtype=np.float32))
    assert np.linalg.norm(found.mean(axis=0) - gradient) < 0.15 * np.linalg.norm(gradient)


def test_a_step_is_pure() -> None:
    theta = np.linspace(-1, 1, N, dtype=np.float32)
    before, rule = theta.copy(), plain(back_perturbations=3)
    engine, seeds = make_engine(), step_seeds(plain(back_perturbations=3), 4, 2, "d", 1)
    first = spzo_step(engine, theta, BATCH, rule, seeds)
    engine.front_workspace[:] = 99.0
    engine.back_workspace[:] = -99.0
    second = spzo_step(engine, theta, BATCH, rule, seeds)
    assert theta.tobytes() == before.tobytes()
    assert first.scalars.tobytes() == second.scalars.tobytes()
    assert first.loss == second.loss


def test_steps_go_downhill() -> None:
    rule = StepRule(back_perturbations=4, learning_rate=0.02)
    engine, theta, mean_square = make_engine(), np.zeros(N, np.float32), None
    start = engine.loss(theta)
    for step in range(300):
        seeds = step_seeds(rule, 3, 0, "d", step)
        result = spzo_step(engine, theta, BATCH, rule, seeds)
        coefficients, mean_square = step_coefficients(result.scalars.tolist(), rule, mean_square)
        apply_step(theta, FRONT_SIZE, seeds, coefficients)
    assert engine.loss(theta) < 0.2 * start


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    broken = QuadraticEngine(np.full((N, N), np.nan), np.zeros(N), FRONT_SIZE)
    rule = plain()
    with pytest.raises(TrainingError, match="not finite"):
        spzo_step(broken, np.zeros(N, np.float32), BATCH, rule, step_seeds(rule, 0, 0, "d", 0))


def test_a_theta_of_another_size_is_an_error() -> None:
    rule = plain()
    with pytest.raises(TrainingError, match="parameters"):
        spzo_step(make_engine(), np.zeros(N + 1, np.float32), BATCH, rule, step_seeds(rule, 0, 0, "d", 0))


@pytest.mark.parametrize(
    "rule", [plain(leave_one_out=True, back_perturbations=1), plain(leave_one_out=True, variant="clean")]
)
def test_leave_one_out_needs_something_to_leave(rule: StepRule) -> None:
    with pytest.raises(ConfigError, match="leave_one_out"):
        check_rule(rule)


def test_seeds_do_not_repeat() -> None:
    rule = plain(front_perturbations=2, back_perturbations=4)
    seen = [
        seed
        for round_index in range(3)
        for device in ("a", "b", "ab")
        for step in range(3)
        for side in [step_seeds(rule, 7, round_index, device, step)]
        for seed in (*side.front, *side.back)
    ]
    assert len(set(seen)) == len(seen)
