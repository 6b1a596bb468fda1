"""Layer dropout: inclusion probabilities by name, drawn exactly; AdamW as PyTorch's; the local steps on a bowl."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.backprop.adamw import AdamW, AdamWOptions
from edge_runtime.backprop.importance import LayerStatistics, importance, overlay, personal_layers
from edge_runtime.backprop.layer_draw import (
    choose_layers,
    draw_bernoulli,
    draw_layers,
    inclusion_probabilities,
    residual_scales,
)
from edge_runtime.backprop.round import BackpropSettings, Personal, train_backprop
from edge_runtime.bundle.layers import LayerSlices
from edge_runtime.data.rows import EncodedRows
from edge_runtime.engines.quadratic import LayeredQuadraticEngine
from edge_runtime.errors import BundleError, ConfigError, TrainingError
from edge_runtime.protocol.layer_dropout import Stld

SHAPES: list[Any] = ["uniform", "incremental", "decay", "normal"]


def generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


@given(layers=st.integers(1, 40), share=st.floats(0, 1), shape=st.sampled_from(SHAPES))
def test_probabilities_add_up_and_leave_no_layer_out(layers: int, share: float, shape: Any) -> None:
    level = 1 + round(share * (layers - 1))
    found = inclusion_probabilities(layers, level, shape)
    assert found.sum() == pytest.approx(level)
    assert found.max() <= 1 + 1e-12
    assert found.min() >= level / layers / 2 - 1e-12


def test_shapes_are_what_their_names_say() -> None:
    drops = {shape: 1 - inclusion_probabilities(13, 8, shape) for shape in SHAPES}
    assert np.ptp(drops["uniform"]) < 1e-12
    assert (np.diff(drops["incremental"]) > 0).all()
    assert (np.diff(drops["decay"]) < 0).all()
    assert drops["normal"].argmax() == 6
    assert np.abs(drops["normal"] - drops["normal"][::-1]).max() < 1e-12
    with pytest.raises(ConfigError, match="13 active layers of a model with 12"):
        inclusion_probabilities(12, 13, "uniform")


def chi_square(counts: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> float:
    """The statistic as a normal deviate (Wilson and Hilferty, 1931)."""
    freedom = len(counts) - 1
    statistic = float(((counts - expected) ** 2 / expected).sum())
    return ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))


@pytest.mark.parametrize("shape", SHAPES)
def test_layers_are_drawn_with_these_probabilities(shape: Any) -> None:
    """One of each draw's layers, taken at random, is multinomial with probabilities π / k: a chi-square test."""
    layers, level, draws = 12, 5, 6000
    probabilities, rng = inclusion_probabilities(layers, level, shape), generator(3)
    counts, together = np.zeros(layers), np.zeros((layers, layers))
    for _ in range(draws):
        drawn = draw_layers(rng, probabilities, level)
        assert len(set(drawn)) == level
        assert drawn == sorted(drawn)
        counts[drawn[rng.integers(level)]] += 1
        together[np.ix_(drawn, drawn)] += 1
    assert chi_square(counts, draws * probabilities / level) < 3.5
    assert together[~np.eye(layers, dtype=bool)].min() > 0  # every pair of layers occurs
    if shape != "uniform":
        assert chi_square(counts, np.full(layers, draws / layers)) > 3.5  # the test can tell shapes apart


def test_bernoulli_varies_the_level_among_those_that_there_are() -> None:
    probabilities, rng = inclusion_probabilities(12, 6, "incremental"), generator(1)
    drawn = [draw_bernoulli(rng, probabilities, [5, 6, 7]) for _ in range(4000)]
    assert {len(layers) for layers in drawn} == {5, 6, 7}
    frequencies = np.bincount([layer for layers in drawn for layer in layers], minlength=12) / len(drawn)
    assert np.abs(frequencies - probabilities).max() < 0.05
    with pytest.raises(BundleError, match="never are as many"):
        draw_bernoulli(rng, inclusion_probabilities(12, 12, "uniform"), [3])


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw_is_pytorchs_also_for_parts_that_pause(weight_decay: float) -> None:
    """Two parts; the second one has a gradient in every other step only."""
    rng = generator(0)
    theta = rng.normal(size=10).astype(np.float32)
    parts = [slice(0, 4), slice(4, 10)]
    theirs = [torch.nn.Parameter(torch.from_numpy(theta[part].copy())) for part in parts]
    reference = torch.optim.AdamW(theirs, lr=0.05, weight_decay=weight_decay, eps=1e-8)
    ours = AdamW(10, AdamWOptions(0.05, weight_decay))
    for step in range(12):
        gradient = rng.normal(size=10).astype(np.float32)
        active = parts if step % 2 else parts[:1]
        for parameter, part in zip(theirs, parts, strict=True):
            parameter.grad = torch.from_numpy(gradient[part]) if part in active else None
        reference.step()
        ours.step(theta, gradient, active)
    expected = np.concatenate([parameter.detach().numpy() for parameter in theirs])
    assert np.abs(theta - expected).max() < 1e-6


# -- the local steps --------------------------------------------------------------------------------------------------

LAYERS, WIDTH = 4, 3
SIZE = LAYERS * WIDTH + 2
SLICES = LayerSlices(
    tuple(slice(layer * WIDTH, (layer + 1) * WIDTH) for layer in range(LAYERS)), (slice(LAYERS * WIDTH, SIZE),)
)
ROWS = EncodedRows([[2, 5, 3]] * 6, [0, 1] * 3, 0)
OPTIMUM = np.where(np.arange(SIZE) % 2, 1.0, -1.0)


def bowl(levels: tuple[int, ...] = (1, 2, 3, 4), scale: float = 1.0) -> LayeredQuadraticEngine:
    """Deeper layers have larger gradients."""
    curvature = np.diag(scale * (1.0 + np.arange(SIZE) // WIDTH))
    return LayeredQuadraticEngine(curvature, OPTIMUM, 6, SLICES, levels)


def work(level: int, **stld: Any) -> BackpropSettings:
    options = Stld(**{"learning_rate": 0.05, "steps": 8} | stld)
    return BackpropSettings(1, 0, "pi", options, level, dict.fromkeys(range(1, LAYERS + 1), options.most_rows))


def run(level: int, personal: Personal | None = None, **stld: Any) -> Any:
    fresh = Personal({}, LayerStatistics.of(LAYERS))
    return train_backprop(bowl(), np.zeros(SIZE, np.float32), ROWS, work(level, **stld), SLICES, personal or fresh)


def test_the_layered_bowl_leaves_absent_layers_alone() -> None:
    theta, out = np.ones(SIZE, np.float32), np.full(SIZE, 9, np.float32)
    loss = bowl().gradients(theta, [0, 3], ROWS.batch([0]), out)
    assert (out[3:9] == 9).all()
    seen = theta.copy()
    seen[3:9] = 0
    assert loss == pytest.approx(bowl().loss(seen))
    assert np.abs(out[[0, 1, 2, 9, 10, 11, 12, 13]] - bowl().gradient(seen)[[0, 1, 2, 9, 10, 11, 12, 13]]).max() < 1e-6
    with pytest.raises(BundleError, match="no graph with 3"):
        bowl((1, 2)).gradients(theta, [0, 1, 2], ROWS.batch([0]), out)


def test_a_scale_of_the_layered_bowl_is_a_factor_on_a_layers_parameters() -> None:
    theta, out, plain = np.ones(SIZE, np.float32), np.zeros(SIZE, np.float32), np.zeros(SIZE, np.float32)
    doubled = theta.copy()
    doubled[SLICES.layers[1]] = 2
    loss = bowl().gradients(theta, range(LAYERS), ROWS.batch([0]), out, [1.0, 2.0, 1.0, 1.0])
    assert loss == bowl().gradients(doubled, range(LAYERS), ROWS.batch([0]), plain)
    plain[SLICES.layers[1]] *= 2
    assert (out == plain).all()


@given(layers=st.integers(1, 24), share=st.floats(0, 1), shape=st.sampled_from(SHAPES))
def test_rescaled_residuals_have_the_expectation_of_all_layers(layers: int, share: float, shape: Any) -> None:
    """A layer counts by its scale when it is active: on average by 1, whatever its probability."""
    level = 1 + round(share * (layers - 1))
    probabilities = inclusion_probabilities(layers, level, shape)
    scales = residual_scales(Stld(shape=shape, rescale=True), layers, level, range(layers))
    assert scales is not None
    assert np.asarray(scales) * probabilities == pytest.approx(1.0)
    assert residual_scales(Stld(shape=shape), layers, level, range(layers)) is None


def test_a_round_runs_its_layers_with_their_scales() -> None:
    """At level 2 of 4 every active layer counts twice."""
    plain, rescaled = run(2, steps=1), run(2, steps=1, rescale=True)
    assert plain.sent == rescaled.sent
    assert plain.loss == rescaled.loss  # at 0 a factor changes nothing but the gradient
    outside = slice(SLICES.layers[-1].stop, SIZE)
    moved = [result.personal.statistics.norms for result in (plain, rescaled)]
    assert moved[1] == pytest.approx([2 * norm for norm in moved[0]], rel=1e-6)
    assert plain.movement[outside] == pytest.approx(rescaled.movement[outside])
    assert run(4, steps=3).movement == pytest.approx(run(4, steps=3, rescale=True).movement)


@pytest.mark.parametrize("draw", ["exact", "bernoulli"])
def test_a_round_goes_downhill_and_says_what_it_ran(draw: str) -> None:
    result = run(2, steps=40, draw=draw)
    assert bowl().loss(result.movement) < 0.5 * bowl().loss(np.zeros(SIZE, np.float32))
    assert result.sent == [0, 1, 2, 3]
    assert sum(result.personal.statistics.batches) == result.layers_trained
    assert result.layers_trained == 80 if draw == "exact" else 40 < result.layers_trained < 160


def test_what_was_dropped_did_not_move_and_is_not_sent() -> None:
    result = run(1, steps=2)
    active = {layer for layer, count in enumerate(result.personal.statistics.batches) if count}
    assert len(active) < LAYERS
    assert result.sent == sorted(active)
    for layer, where in enumerate(SLICES.layers):
        assert result.movement[where].any() == (layer in active)
    assert result.movement[SLICES.rest[0]].all()


def test_a_round_is_a_function_of_its_seeds() -> None:
    assert run(2).movement.tobytes() == run(2).movement.tobytes()
    other = train_backprop(
        bowl(),
        np.zeros(SIZE, np.float32),
        ROWS,
        BackpropSettings(2, 0, "pi", Stld(learning_rate=0.05, steps=8), 2, {2: 8}),
        SLICES,
        Personal({}, LayerStatistics.of(LAYERS)),
    )
    assert other is not None
    assert other.movement.tobytes() != run(2).movement.tobytes()


def test_a_long_gradient_is_clipped() -> None:
    """The same direction at any length: AdamW's first steps do not see the difference, its moments do."""
    statistics = run(4, clip_norm=1e-3).personal.statistics
    assert statistics.norms[3] / statistics.batches[3] > 0.1  # importance is measured before clipping
    free, clipped = run(4, clip_norm=None), run(4, clip_norm=0.5)
    assert not np.array_equal(free.movement, clipped.movement)


def test_a_round_can_be_given_up_and_nonsense_stops_it() -> None:
    fresh = Personal({}, LayerStatistics.of(LAYERS))
    zeros = np.zeros(SIZE, np.float32)
    assert train_backprop(bowl(), zeros, ROWS, work(2), SLICES, fresh, lambda step, _loss: step < 2) is None
    with pytest.raises(TrainingError, match="not finite"):
        train_backprop(bowl(scale=math.inf), zeros, ROWS, work(2), SLICES, fresh)
    with pytest.raises(BundleError, match="no graph"):
        train_backprop(bowl((4,)), zeros, ROWS, work(2), SLICES, fresh)
    assert fresh.statistics == LayerStatistics.of(LAYERS)


# -- personal layers --------------------------------------------------------------------------------------------------


def test_the_most_important_layers_stay_personal_and_begin_where_they_were() -> None:
    first = run(4, personal_share=0.5)
    assert sorted(first.personal.layers) == [2, 3]  # the steepest ones
    assert first.sent == [0, 1]
    second = run(4, first.personal, personal_share=0.5)
    assert second.sent == [0, 1]
    start = overlay(np.zeros(SIZE, np.float32), first.personal.layers, SLICES.layers)
    assert np.array_equal(start[SLICES.layers[3]], first.movement[SLICES.layers[3]])
    moved = second.personal.layers[3] - first.personal.layers[3]
    assert np.abs(moved - second.movement[SLICES.layers[3]]).max() < 1e-6
    assert second.personal.statistics.batches == [16] * LAYERS


def test_a_layer_that_is_released_is_shared_before_it_is_sent() -> None:
    first = run(4, personal_share=0.5)
    released = run(4, first.personal, personal_share=0.0)
    assert not released.personal.layers
    assert released.sent == [0, 1]
    assert run(4, released.personal).sent == [0, 1, 2, 3]


def test_every_criterion_ranks_by_its_own_measure() -> None:
    seen = LayerStatistics([2, 1, 4, 0], [2.0, 3.0, 4.0, 0.0], [9.0, 1.0, 4.0, 0.0], [1.0, 1.0, 9.0, 0.0], [1, 1, 3, 0])
    assert importance(seen, "gradient", 0) == [1.0, 3.0, 1.0, None]
    assert importance(seen, "fisher", 0) == [4.5, 1.0, 1.0, None]
    assert importance(seen, "update", 0) == [1.0, 1.0, 3.0, None]
    assert importance(seen, "depth", 0) == [0.0, 1.0, 2.0, None]
    assert importance(seen, "random", 5) == importance(seen, "random", 5) != importance(seen, "random", 6)
    assert personal_layers([1.0, 3.0, 1.0, None], 0.4) == [1]
    assert personal_layers([1.0, 3.0, 1.0, None], 0.6) == [0, 1]
    assert personal_layers([None, None], 1.0) == []


def test_the_levels_that_a_device_can_hold_bound_bernoulli() -> None:
    stld = Stld(draw="bernoulli")
    drawn = [choose_layers(generator(seed), stld, 4, 2, [1, 2]) for seed in range(50)]
    assert {len(layers) for layers in drawn} == {1, 2}
