"""Hybrid merging: weights are compared with the best ones on a bowl, and each layer averages its senders only."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.bundle.layers import LayerSlices
from edge_runtime.bundle.layout import Parameter
from edge_runtime.data.rows import EncodedRows
from edge_runtime.engines.quadratic import LayeredQuadraticEngine
from edge_runtime.errors import TrainingError
from edge_runtime.forward_only.directions import step_seeds
from edge_runtime.forward_only.step import spzo_step
from edge_runtime.protocol.round_log import DeviceScalars, RoundLog, pack_scalars
from edge_runtime.protocol.step_rule import StepRule
from server.rounds.merge import Delta, Forward, forward_part, groups_of, merge, merged_adapter

LAYERS, WIDTH = 3, 40
SIZE = LAYERS * WIDTH + 10
FRONT_SIZE = 2 * WIDTH
PARAMETERS = [Parameter(f"layer.{layer}", [WIDTH], layer, layer * WIDTH) for layer in range(LAYERS)]
PARAMETERS.append(Parameter("head", [10], LAYERS, LAYERS * WIDTH))
SLICES = LayerSlices(
    tuple(slice(layer * WIDTH, (layer + 1) * WIDTH) for layer in range(LAYERS)), (slice(LAYERS * WIDTH, SIZE),)
)
ROWS = EncodedRows([[2, 5, 3]], [0], 0)
ALL = frozenset(range(LAYERS))


def generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def bowl() -> LayeredQuadraticEngine:
    rng = generator(4)
    root = rng.normal(size=(SIZE, SIZE)) / np.sqrt(SIZE)
    return LayeredQuadraticEngine(root @ root.T + 0.1 * np.eye(SIZE), rng.normal(size=SIZE), FRONT_SIZE, SLICES, [3])


THETA = np.linspace(-1, 1, SIZE, dtype=np.float32)
RATE = 1e-3


def forward_round(draw: int, devices: int, p1: int, rate: float = RATE) -> Forward:
    """One step of each forward-only device, by the real step and log."""
    rule = StepRule(front_perturbations=p1, back_perturbations=2, learning_rate=rate, normalize="none", eps=1e-2)
    parts = []
    for index in range(devices):
        name = f"d{index}"
        found = spzo_step(bowl(), THETA, ROWS.batch([0]), rule, step_seeds(rule, draw, 0, name, 0))
        parts.append(DeviceScalars(name, 1 / devices, pack_scalars(found.scalars)))
    log = RoundLog("job", draw, 0, rule, FRONT_SIZE, 1, None, 0.0, None, "a" * 64, "a" * 64, parts, None)
    return forward_part(log, SIZE)


def deltas_of(rng: np.random.Generator, devices: int, noise: float, rate: float = RATE) -> dict[str, Delta]:
    """SGD steps on bowls whose optimum is each device's own: gradients with noise."""
    gradient = np.zeros(SIZE, np.float32)
    bowl().gradients(THETA, range(LAYERS), ROWS.batch([0]), gradient)
    scale = noise * float(np.linalg.norm(gradient)) / np.sqrt(SIZE)
    return {
        f"b{index}": Delta(1.0, ALL, (-rate * (gradient + scale * rng.normal(size=SIZE))).astype(np.float32))
        for index in range(devices)
    }


@pytest.mark.parametrize(("p1", "noise", "ratio"), [(16, 1.0, 1.0), (16, 2.0, 0.25), (48, 2.0, 4.0)])
def test_the_weights_are_the_best_ones_on_a_bowl(p1: int, noise: float, ratio: float) -> None:
    """Group by group against the weight that is best with hindsight; ``ratio``: the kinds' learning rates differ."""
    rng = generator(1)
    target = -RATE * bowl().gradient(THETA)
    merged, backprop, zeroth, figures = [], [], [], []
    for draw in range(40):
        forward, deltas = forward_round(draw, 4, p1, RATE * ratio), deltas_of(rng, 3, noise)
        movement, told = merge(PARAMETERS, LAYERS, deltas, forward, by_noise=True)
        merged.append(movement)
        backprop.append(np.mean([delta.movement for delta in deltas.values()], axis=0))
        zeroth.append(forward.movement / ratio)
        figures.append(told)

    def error(movements: Any, where: slice) -> float:
        return float(np.square(np.asarray(movements)[:, where] - target[where]).sum(axis=1).mean())

    weights = np.linspace(0, 1, 101)
    best, least, ours = [], 0.0, 0.0
    for where in groups_of(PARAMETERS).values():
        curve = [error(w * np.array(backprop) + (1 - w) * np.array(zeroth), where) for w in weights]
        best.append(float(weights[int(np.argmin(curve))]))
        least += min(curve)
        ours += error(merged, where)
    everything = slice(0, SIZE)
    assert 0.05 < min(best) < max(best) < 0.95  # both kinds count in every group
    assert np.mean([told.backprop_shares for told in figures], axis=0) == pytest.approx(best, abs=0.15)
    assert ours < 1.15 * least
    assert ours < 0.85 * min(error(backprop, everything), error(zeroth, everything))  # better than either kind alone
    alphas = [told.alpha for told in figures if told.alpha is not None]
    assert np.median(alphas) == pytest.approx(ratio, rel=0.2)


def test_forward_noise_is_what_the_scalars_say() -> None:
    """The variance over draws is the sum of the squared coefficients, block by block."""
    rounds = [forward_round(draw, 2, 8) for draw in range(200)]
    seen = np.var([forward.movement for forward in rounds], axis=0)
    for where, told in (
        (slice(0, FRONT_SIZE), np.mean([forward.front_variance for forward in rounds])),
        (slice(FRONT_SIZE, SIZE), np.mean([forward.back_variance for forward in rounds])),
    ):
        assert seen[where].mean() == pytest.approx(told, rel=0.15)


def test_a_forward_part_without_information_is_left_out() -> None:
    rng = generator(2)
    noise = Forward(rng.normal(size=SIZE).astype(np.float32), FRONT_SIZE, 1.0, 1.0)
    deltas = deltas_of(rng, 2, 0.1)
    merged, figures = merge(PARAMETERS, LAYERS, deltas, noise, by_noise=True)
    assert figures.alpha is None
    assert np.array_equal(merged, 0.5 * deltas["b0"].movement[0:SIZE].astype(float) + 0.5 * deltas["b1"].movement)


def test_a_block_with_much_noise_does_not_drown_one_with_little() -> None:
    """Layers have few directions for their size, a head has many: it is merged although the layers show nothing."""
    rng = generator(3)
    deltas = deltas_of(rng, 2, 0.5)
    spread = np.full(SIZE, 10.0)
    spread[FRONT_SIZE:] = 1e-4 * RATE
    target = -RATE * bowl().gradient(THETA)
    forward = Forward(
        (target + spread * rng.normal(size=SIZE)).astype(np.float32), FRONT_SIZE, 100.0, float(spread[-1] ** 2)
    )
    movement, figures = merge(PARAMETERS, LAYERS, deltas, forward, by_noise=True)
    assert figures.alpha == pytest.approx(1.0, rel=0.3)
    assert figures.backprop_shares[:2] == pytest.approx([1.0, 1.0], abs=1e-3)
    assert max(figures.backprop_shares[2:]) < 0.01
    apart = np.linalg.norm((movement - target)[FRONT_SIZE:])
    alone = np.linalg.norm((np.mean([d.movement for d in deltas.values()], axis=0) - target)[FRONT_SIZE:])
    assert apart < alone


def test_kinds_that_go_different_ways_count_by_examples() -> None:
    """Where devices' data differ, a movement that is more than noise is kept although it points elsewhere."""
    rng = generator(5)
    deltas = deltas_of(rng, 2, 0.1)
    other = np.zeros(SIZE)
    other[FRONT_SIZE:] = -10 * np.mean([delta.movement for delta in deltas.values()], axis=0)[FRONT_SIZE:]
    variance = float(np.square(other[FRONT_SIZE:]).mean()) / 20
    noisy = (other + np.sqrt(variance) * rng.normal(size=SIZE)).astype(np.float32)
    forward = Forward(noisy, FRONT_SIZE, variance, variance)
    movement, figures = merge(PARAMETERS, LAYERS, deltas, forward, by_noise=True, forward_share=6.0)
    assert figures.alpha is None
    assert figures.backprop_shares == pytest.approx([1.0, 1.0, 0.25, 0.25])
    mean = np.mean([delta.movement for delta in deltas.values()], axis=0)[FRONT_SIZE:]
    assert movement[FRONT_SIZE:] == pytest.approx(0.25 * mean + 0.75 * noisy[FRONT_SIZE:], rel=1e-5, abs=1e-9)


def test_each_layer_is_averaged_over_the_devices_that_sent_it_by_examples() -> None:
    def delta(share: float, layers: set[int], value: float) -> Delta:
        return Delta(share, layers, np.full(SIZE, value, np.float32))

    deltas = {"a": delta(30, {0, 1}, 1.0), "b": delta(10, {1}, 5.0)}
    merged, _ = merge(PARAMETERS, LAYERS, deltas, None, by_noise=True)
    found = {group: merged[where] for group, where in groups_of(PARAMETERS).items()}
    assert (found[0] == 1.0).all()
    assert (found[1] == 2.0).all()
    assert (found[2] == 0.0).all()  # nobody sent it
    assert (found[LAYERS] == 2.0).all()  # the head is always sent
    forward = Forward(np.full(SIZE, -1, np.float32), FRONT_SIZE, 1.0, 1.0)
    merged, figures = merge(PARAMETERS, LAYERS, deltas, forward, by_noise=False, forward_share=40)
    found = {group: merged[where] for group, where in groups_of(PARAMETERS).items()}
    assert found[0] == pytest.approx(30 / 70 * 1.0 - 40 / 70)
    assert (found[2] == -1.0).all()  # only the forward-only devices moved it
    assert figures.backprop_shares == pytest.approx([30 / 70, 0.5, 0.5])


@given(seed=st.integers(0, 1000), devices=st.integers(1, 5), by_noise=st.booleans())
def test_merging_is_a_mean(seed: int, devices: int, by_noise: bool) -> None:
    """The order of the devices changes nothing, and equal deltas are their own mean."""
    rng = generator(seed)
    deltas = deltas_of(rng, devices, 1.0)
    forward = Forward(deltas["b0"].movement, FRONT_SIZE, 1e-9, 1e-9)
    merged, _ = merge(PARAMETERS, LAYERS, deltas, forward, by_noise=by_noise, forward_share=3)
    backwards = dict(reversed(deltas.items()))
    assert np.array_equal(merge(PARAMETERS, LAYERS, backwards, forward, by_noise=by_noise, forward_share=3)[0], merged)
    same = {name: Delta(index + 1.0, ALL, deltas["b0"].movement) for index, name in enumerate(deltas)}
    assert merge(PARAMETERS, LAYERS, same, None, by_noise=by_noise)[0] == pytest.approx(deltas["b0"].movement, rel=1e-6)
    assert np.isfinite(merged).all()


def test_an_adapter_that_is_not_finite_is_refused() -> None:
    with pytest.raises(TrainingError, match="not finite"):
        merged_adapter(THETA, None, 0.0, np.full(SIZE, 1e39))
    moved = merged_adapter(THETA, np.zeros(SIZE, np.float32), 0.5, np.ones(SIZE))
    assert moved == pytest.approx(1.5 * THETA + 1, abs=1e-6)
