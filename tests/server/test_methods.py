"""Methods by name: each is its published rule, on the same engine, seeds and messages."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edge_runtime.data.batch import Batch
from edge_runtime.engines.quadratic import QuadraticEngine
from edge_runtime.errors import ConfigError
from edge_runtime.forward_only.coefficients import Terms, apply_step, apply_terms, step_coefficients
from edge_runtime.forward_only.directions import StepSeeds, step_seeds
from edge_runtime.forward_only.step import spzo_step
from edge_runtime.perturbation.perturb import BACK, FRONT, rademacher
from edge_runtime.protocol.step_rule import StepRule, check_rule
from edge_runtime.seeds import pool_seed
from server.job.job import read_job
from server.job.methods import METHODS, expand

if TYPE_CHECKING:
    from edge_runtime.values import FloatVector

N, FRONT_SIZE = 20, 8
BATCH = Batch(np.ones((1, 2), np.int64), np.ones((1, 2), np.int64), np.zeros(1, np.int64))
THETA: FloatVector = np.linspace(-1, 1, N, dtype=np.float32)


def make_engine() -> QuadraticEngine:
    rng = np.random.Generator(np.random.PCG64(5))
    root = rng.normal(size=(N, N)) / np.sqrt(N)
    return QuadraticEngine(root @ root.T + 0.1 * np.eye(N), rng.normal(size=N), FRONT_SIZE)


def rule_of(method: str, **step: Any) -> StepRule:
    return StepRule(**expand(method, step))


def one_step(rule: StepRule) -> tuple[FloatVector, StepSeeds]:
    """The movement of one step from THETA."""
    directions = step_seeds(rule, 1, 0, "pi", 0)
    result = spzo_step(make_engine(), THETA, BATCH, rule, directions)
    coefficients, _ = step_coefficients(result.scalars.tolist(), rule, None)
    moved = THETA.copy()
    apply_step(moved, FRONT_SIZE, directions, coefficients)
    return moved - THETA, directions


def whole(directions: StepSeeds, i: int) -> np.ndarray[Any, Any]:
    front, back = directions.front[i], directions.back[i]
    return np.concatenate([rademacher(front, FRONT, 0, FRONT_SIZE), rademacher(back, BACK, 0, N - FRONT_SIZE)])


def test_mezo_by_hand() -> None:
    """Malladi et al. (NeurIPS 2023), algorithm 1, n-SPSA: θ ← θ − η/n Σ (L(θ + εz) − L(θ − εz)) / 2ε · z."""
    moved, directions = one_step(rule_of("mezo", front_perturbations=3, learning_rate=0.1))
    loss, eps, expected = make_engine().loss, 0.01, np.zeros(N)
    for i in range(3):
        z = whole(directions, i)
        expected -= 0.1 / 3 * (loss(THETA + eps * z) - loss(THETA - eps * z)) / (2 * eps) * z
    assert np.abs(moved - expected).max() < 1e-4 * np.abs(expected).max()


def test_decomfl_by_hand() -> None:
    """Li et al. (ICLR 2025): forward differences from one clean loss, along directions that all devices share."""
    rule = rule_of("decomfl", front_perturbations=2, learning_rate=0.1)
    moved, directions = one_step(rule)
    loss, eps, expected = make_engine().loss, rule.eps, np.zeros(N)
    for i in range(2):
        z = whole(directions, i)
        expected -= 0.1 / 2 * (loss(THETA + eps * z) - loss(THETA)) / eps * z
    assert np.abs(moved - expected).max() < 1e-2 * np.abs(expected).max()  # float32 parameters at eps 1e-3
    assert step_seeds(rule, 1, 0, "pi", 0) == step_seeds(rule, 1, 0, "another", 0)
    assert step_seeds(rule, 1, 0, "pi", 0) != step_seeds(rule, 1, 0, "pi", 1)


def test_fedkseed_draws_from_a_pool() -> None:
    """Qin et al. (ICML 2024): every direction is one of K seeds, so the sum over a job has K coefficients."""
    rule = rule_of("fedkseed", seed_pool=7)
    pool = {pool_seed(1, index) for index in range(7)}
    drawn = [step_seeds(rule, 1, r, device, step) for r in range(5) for device in "ab" for step in range(10)]
    assert {seed for seeds in drawn for seed in seeds.front + seeds.back} == pool
    moved, directions = one_step(rule)
    z = whole(directions, 0)
    assert np.abs(np.abs(moved) - abs(moved[0])).max() < 1e-6
    assert np.sign(moved * z * (moved[0] * z[0])).min() > 0


def test_fzoo_by_hand() -> None:
    """Dang et al. (2025): one-sided, divided by the losses' standard deviation; our learning rate is η/ε."""
    rule = rule_of("fzoo", front_perturbations=4, learning_rate=0.1)
    moved, directions = one_step(rule)
    loss, eps = make_engine().loss, rule.eps
    eta = 0.1 * eps
    losses = np.array([loss(THETA + eps * whole(directions, i)) for i in range(4)])
    gradient = sum((losses[i] - loss(THETA)) / (eps * 4) * whole(directions, i) for i in range(4))
    expected = -eta * gradient / losses.std(ddof=1)
    assert np.abs(moved - expected).max() < 1e-3 * np.abs(expected).max()


def test_spzo_with_fzoos_rule_reuses_the_front() -> None:
    rule = rule_of("spzo-fzoo", front_perturbations=2, back_perturbations=5)
    result = spzo_step(make_engine(), THETA, BATCH, rule, step_seeds(rule, 1, 0, "pi", 0))
    assert (result.front_passes, result.back_passes) == (3, 11)
    clean = rule_of("spzo-clean", difference="forward", front_perturbations=2, back_perturbations=5)
    result = spzo_step(make_engine(), THETA, BATCH, clean, step_seeds(clean, 1, 0, "pi", 0))
    assert (result.front_passes, result.back_passes) == (3, 8)


def test_spzo_with_decomfls_shared_directions_reuses_the_front() -> None:
    """Two front passes for four back directions, and one coefficient per direction in the log, whatever the cohort."""
    rule = rule_of("spzo-shared", back_perturbations=4)
    result = spzo_step(make_engine(), THETA, BATCH, rule, step_seeds(rule, 1, 0, "pi", 0))
    assert (result.front_passes, result.back_passes) == (2, 8)
    assert step_seeds(rule, 1, 0, "pi", 0) == step_seeds(rule, 1, 0, "another", 0)
    with pytest.raises(ConfigError, match="spzo-shared has shared_directions = True"):
        expand("spzo-shared", {"shared_directions": False})


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shared", [False, True])
def test_every_method_goes_downhill(method: str, shared: bool) -> None:
    if method == "decomfl" and not shared:
        return
    rule = (
        rule_of(method, normalize="rms", **({"shared_directions": True} if shared else {}))
        if (METHODS[method].fixed.get("normalize") is None)
        else rule_of(method)
    )
    check_rule(rule)
    engine, theta, mean_square = make_engine(), THETA.copy(), None
    start = engine.loss(theta)
    for step in range(300):
        left = 1 - step / 300
        directions = step_seeds(rule, 3, 0, "pi", step)
        result = spzo_step(engine, theta, BATCH, rule, directions)
        coefficients, mean_square = step_coefficients(result.scalars.tolist(), rule, mean_square)
        terms = Terms()
        terms.add(directions, coefficients)
        scaled = Terms([(s, 3 * left * c) for s, c in terms.front], [(s, 3 * left * c) for s, c in terms.back])
        apply_terms(theta, theta, FRONT_SIZE, scaled)
    assert engine.loss(theta) < 0.3 * start


@pytest.mark.parametrize("method", METHODS)
def test_a_model_that_is_not_copied_gives_the_same_bits(method: str) -> None:
    """Pending terms are added each time the workspaces are written, in the order of the steps."""
    rule = rule_of(method)
    local, pending = THETA.copy(), Terms()
    for step in range(3):
        directions = step_seeds(rule, 3, 0, "pi", step)
        copied = spzo_step(make_engine(), local, BATCH, rule, directions)
        mapped = spzo_step(make_engine(), THETA, BATCH, rule, directions, pending)
        assert copied.scalars.tobytes() == mapped.scalars.tobytes()
        coefficients, _ = step_coefficients(copied.scalars.tolist(), rule, None)
        apply_step(local, FRONT_SIZE, directions, coefficients)
        pending.add(directions, coefficients)


JOB = 'name = "job"\neval_file = "test.jsonl"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('method = "adam"\n', "unknown method 'adam'"),
        ("method = 3\n", "unknown method 3"),
        ('method = "mezo"\n[step]\nback_perturbations = 4\n', "method mezo has back_perturbations = 1"),
        ('method = "fzoo"\n[step]\nfront_perturbations = 1\n', "2 or more scalars"),
        ('[step]\nnormalize = "std"\nback_perturbations = 1\n', "2 or more scalars"),
        ("step = 3\n", "step"),
        ("server_momentum = 1.0\n", "server_momentum"),
        ('[adaptive]\n[step]\nvariant = "clean"\n', "adaptive"),
        ("steps = 300\n[adaptive]\nmost_back_perturbations = 256\n", "more than one message"),
        ("[privacy]\nclip = 1.0\nnoise_multiplier = 1.0\n", 'weighting = "uniform"'),
        ("[privacy]\nclip = 0.0\nnoise_multiplier = 1.0\n", "clip"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "job.toml").write_text(JOB + text)
    with pytest.raises(ConfigError, match=message):
        read_job(tmp_path / "job.toml")


def test_a_jobs_method_fills_in_its_step(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(
        JOB + 'method = "decomfl"\n[step]\nlearning_rate = 0.5\ndifference = "central"\n'
    )
    rule = read_job(tmp_path / "job.toml").step
    assert (rule.shared_directions, rule.back_perturbations, rule.front_perturbations) == (True, 1, 5)
    assert (rule.learning_rate, rule.difference, rule.normalize) == (0.5, "central", "none")
