"""Levels of both kinds: how they are written and sorted, and what a device trains at a top level."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.backprop.importance import LayerStatistics
from edge_runtime.backprop.layer_draw import active_layers
from edge_runtime.backprop.round import BackpropSettings, Personal, train_backprop
from edge_runtime.bundle.layers import LayerSlices
from edge_runtime.bundle.levels import (
    Level,
    ascending,
    forward_passes,
    kind_of,
    rank,
    run_layers,
    top_level,
    trained_layers,
)
from edge_runtime.data.rows import EncodedRows
from edge_runtime.engines.quadratic import LayeredQuadraticEngine
from edge_runtime.errors import BundleError, TrainingError
from edge_runtime.protocol.layer_dropout import Stld

LEVELS = st.one_of(st.integers(1, 4096), st.integers(1, 4096).map(top_level))


@given(level=LEVELS)
def test_a_level_survives_every_encoding(level: Level) -> None:
    for module in (msgspec.json, msgspec.msgpack):
        assert module.decode(module.encode({"level": level}), type=dict[str, Level]) == {"level": level}
    written = level if kind_of(level) == "drop" else top_level(trained_layers(level))
    assert written == level


@pytest.mark.parametrize("text", ["top:0", "top:", "top:-1", "top:03", "drop:3", "top:3 ", "top:3\n", "3", 0, 4097])
def test_what_is_no_level_is_refused(text: Any) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(msgspec.json.encode(text), type=Level)


def test_levels_are_sorted_by_what_they_train() -> None:
    levels: list[Level] = ["top:3", 12, "top:1", 3, 1, "top:12", 3]
    assert ascending(levels) == [1, "top:1", 3, "top:3", 12, "top:12"]
    assert max(levels, key=rank) == "top:12"
    assert [run_layers(level, 12) for level in (3, "top:3")] == [3, 12]
    assert [forward_passes(level, 12) for level in (12, "top:12", 3, "top:3")] == [3.0, 3.0, 0.75, 1.5]


# -- the local steps, on a bowl whose gradient is known ---------------------------------------------------------------

LAYERS, WIDTH = 4, 3
SIZE = LAYERS * WIDTH + 2
SLICES = LayerSlices(
    tuple(slice(layer * WIDTH, (layer + 1) * WIDTH) for layer in range(LAYERS)), (slice(LAYERS * WIDTH, SIZE),)
)
ROWS = EncodedRows([[2, 5, 3]] * 6, [0, 1] * 3, 0)
TOPS = (2, 4, "top:1", "top:2", "top:4")


def bowl(levels: tuple[Level, ...] = TOPS) -> LayeredQuadraticEngine:
    """The parameters of different layers are coupled: an absent layer changes the gradients of the others."""
    hessian = np.diag(1.0 + np.arange(SIZE) // WIDTH) + 0.1
    return LayeredQuadraticEngine(hessian, np.where(np.arange(SIZE) % 2, 1.0, -1.0), 6, SLICES, levels)


def run(level: Level, personal: Personal | None = None, rows_at_once: int = 8, **stld: Any) -> Any:
    """Run a round from an adapter of zeros; deeper layers have larger gradients."""
    options = Stld(**{"learning_rate": 0.05, "steps": 6} | stld)
    settings = BackpropSettings(1, 0, "pi", options, level, dict.fromkeys(TOPS, rows_at_once))
    fresh = Personal({}, LayerStatistics.of(LAYERS))
    return train_backprop(bowl(), np.zeros(SIZE, np.float32), ROWS, settings, SLICES, personal or fresh)


def test_a_top_level_sees_all_layers_and_trains_the_last_ones() -> None:
    theta, out = np.ones(SIZE, np.float32), np.full(SIZE, 9, np.float32)
    loss = bowl().gradients(theta, [2, 3], ROWS.batch([0]), out, whole=True)
    assert loss == bowl().loss(theta)
    assert (out[: 2 * WIDTH] == 9).all()
    assert out[2 * WIDTH :] == pytest.approx(bowl().gradient(theta)[2 * WIDTH :])
    alone = np.zeros(SIZE, np.float32)
    assert bowl().gradients(theta, [2, 3], ROWS.batch([0]), alone) != loss  # without the other layers
    with pytest.raises(TrainingError, match=r"layers \[1, 2\] are not the last 2 of 4"):
        bowl().gradients(theta, [1, 2], ROWS.batch([0]), out, whole=True)
    with pytest.raises(BundleError, match="no graph of level top:3"):
        bowl().gradients(theta, [1, 2, 3], ROWS.batch([0]), out, whole=True)


def test_a_round_moves_and_sends_the_last_layers_alone() -> None:
    result = run("top:2")
    assert result.sent == [2, 3]
    assert result.personal.statistics.batches == [0, 0, 6, 6]
    assert result.layers_trained == 12
    assert not result.movement[: 2 * WIDTH].any()
    assert result.movement[2 * WIDTH :].all()
    assert bowl().loss(result.movement) < bowl().loss(np.zeros(SIZE, np.float32))
    assert result.movement.tobytes() == run("top:2", rows_at_once=8).movement.tobytes()
    assert result.movement == pytest.approx(run("top:2", rows_at_once=3).movement, abs=1e-5)  # in micro-batches


def test_all_layers_at_the_top_are_all_layers() -> None:
    """The draw of a top level is none: rescaling has nothing to make up for, and ``bernoulli`` nothing to vary."""
    whole = run(4)
    assert whole.movement.tobytes() == run("top:4").movement.tobytes()
    assert whole.movement.tobytes() == run("top:4", rescale=True, draw="bernoulli").movement.tobytes()


def test_the_most_important_of_the_trained_layers_stays_personal() -> None:
    first = run("top:2", personal_share=0.25)
    assert sorted(first.personal.layers) == [3]  # the steepest one
    assert first.sent == [2]
    second = run("top:1", first.personal, personal_share=0.25)
    assert second.sent == []  # layer 3 is personal, and no other one was trained
    assert not second.movement[: 3 * WIDTH].any()
    assert second.movement[SLICES.layers[3]].all()


def test_bernoulli_varies_dropout_levels_alone() -> None:
    rng = np.random.Generator(np.random.PCG64(0))
    drawn = [active_layers(rng, Stld(draw="bernoulli"), 4, 2, TOPS) for _ in range(200)]
    assert {len(active.layers) for active in drawn} == {2, 4}
    assert not any(active.whole for active in drawn)
