"""What [robust] makes of the contributions of a round: a minority cannot move it far, and devices replay the same."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from byzantine import PARAMETERS, SIZE, Attack, fleet_rows, flip_ten_times, softmax_job, train
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.forward_only.replay import replay, round_terms
from edge_runtime.protocol.round_log import decode_chain, encode_chain, pack_scalars
from server.job.job import Job
from server.job.robust import Robust
from server.rounds.aggregate import Aggregate, aggregate
from server.rounds.delta_bounds import scaled_down
from server.rounds.merge import Delta
from server.rounds.robust_terms import clip_bound, clipped, middle_of
from server.storage.adapters import RoundBase
from server.storage.records import RoundPlan, TakenReport

SHA = "0" * 64
OPTIONS = [Robust(aggregate="median"), Robust(aggregate="trimmed"), Robust(clip_scalars=3.0)]


def aggregated(job: Job, scalars: dict[str, np.ndarray[Any, Any]], mean_square: float | None = None) -> Aggregate:
    reports = {name: TakenReport(pack_scalars(values.astype(np.float32)), 10) for name, values in scalars.items()}
    return aggregate(PARAMETERS, job, 0, RoundPlan(1, job.step), RoundBase(SHA, None, mean_square), reports)


def drawn(job: Job, devices: int, seed: int) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.Generator(np.random.PCG64(seed))
    common = rng.normal(size=(job.steps, job.step.scalars_per_step))
    return {f"d{index}": common + 0.3 * rng.normal(size=common.shape) for index in range(devices)}


@given(
    st.lists(st.floats(-1, 1), min_size=3, max_size=15),
    st.lists(st.floats(-1e300, 1e300), max_size=7),
    st.sampled_from(["median", "trimmed"]),
)
def test_a_minority_cannot_move_the_middle_out_of_the_range_of_the_others(
    honest: list[float], wrong: list[float], how: Any
) -> None:
    robust = Robust(aggregate=how, trim_share=0.49 if how == "trimmed" else None)
    wrong = wrong[: (len(honest) - 1) // 2]
    middle = middle_of(honest + wrong, robust)
    assert min(honest) <= middle <= max(honest)
    assert middle_of([*reversed(wrong), *reversed(honest)], robust) == middle  # to the bit, whatever the order


def test_trimming_leaves_out_at_least_one_at_each_end_of_three() -> None:
    trimmed = Robust(aggregate="trimmed")
    assert middle_of([-1e9, 2.0, 1e9], trimmed) == 2.0
    assert middle_of([1.0, 2.0, 3.0, 1e9], trimmed) == 2.5
    assert middle_of([1.0, 2.0], trimmed) == 1.5
    assert middle_of([float(n) for n in range(10)] + [1e9] * 2, Robust(aggregate="trimmed", trim_share=0.2)) == 5.5


@given(st.integers(3, 12), st.floats(1e-3, 1e6), st.integers(0, 1000))
def test_a_minority_cannot_move_the_clip_bound_beyond_that_of_honest_devices(
    honest: int, size: float, seed: int
) -> None:
    rng = np.random.Generator(np.random.PCG64(seed))
    scalars = {f"d{index}": pack_scalars(rng.normal(size=8).astype(np.float32)) for index in range(honest)}
    alone = [clip_bound({name: data}, 3.0) or 0.0 for name, data in scalars.items()]
    for index in range((honest - 1) // 2):
        scalars[f"bad{index}"] = pack_scalars(np.full(8, size, np.float32))
    bound = clip_bound(scalars, 3.0)
    assert bound is not None
    assert min(alone) <= bound <= max(alone)
    for data in clipped(scalars, 3.0).values():
        assert np.abs(np.frombuffer(data, "<f4")).max() <= np.float32(bound)


def test_zeros_clip_nothing() -> None:
    scalars = {f"d{index}": pack_scalars(np.zeros(4, np.float32)) for index in range(2)}
    scalars["e"] = pack_scalars(np.ones(4, np.float32))
    assert clipped(scalars, 3.0) == scalars
    assert clipped({}, 3.0) == {}


@pytest.mark.parametrize("robust", OPTIONS)
@pytest.mark.parametrize(
    "changes", [{}, {"normalize": "std"}, {"normalize": "none", "variant": "clean"}, {"seed_pool": 40}]
)
def test_a_device_replays_the_log_of_a_robust_round_to_the_same_bits(robust: Robust, changes: dict[str, Any]) -> None:
    """The log that is published holds merged terms, whose rounding the server's own adapter went through as well."""
    job = softmax_job(robust=robust, step=changes)
    made = aggregated(job, drawn(job, 5, 1), 0.7)
    theta = np.linspace(-1, 1, SIZE, dtype=np.float32)
    (received,) = decode_chain(encode_chain([made.log]))
    assert received.devices == []
    assert np.array_equal(replay(theta, received), replay(theta, made.log))
    assert not np.array_equal(replay(theta, received), theta)


def test_the_terms_are_the_middle_of_the_devices_own_terms() -> None:
    job = softmax_job(robust=Robust(aggregate="median"))
    scalars = drawn(job, 5, 3)
    alone = [round_terms(aggregated(softmax_job(), {name: values}, 0.5).log) for name, values in scalars.items()]
    made = round_terms(aggregated(job, scalars, 0.5).log)
    for block in ("front", "back"):
        seeds = [seed for seed, _ in getattr(made, block)]
        middles = np.median([[c for _, c in getattr(terms, block)] for terms in alone], axis=0)
        assert seeds == [seed for seed, _ in getattr(alone[0], block)]
        assert np.allclose([c for _, c in getattr(made, block)], middles, rtol=1e-6)


@pytest.mark.parametrize("robust", OPTIONS)
def test_one_of_five_cannot_shrink_the_next_round(robust: Robust) -> None:
    """The mean square of the scalars divides the next round's: one device may not inflate it."""
    job, plain = softmax_job(robust=robust), softmax_job()
    scalars = drawn(job, 5, 2)
    honest = aggregated(plain, scalars).mean_square
    attacked = {**scalars, "d0": -1000 * scalars["d0"]}
    inflated, robustly = aggregated(plain, attacked).mean_square, aggregated(job, attacked).mean_square
    assert honest is not None
    assert inflated is not None
    assert robustly is not None
    assert inflated > 1000 * honest
    assert robustly < 3 * honest


def test_options_that_do_not_touch_aggregation_leave_its_bits() -> None:
    for shared in (True, False):
        step = {"shared_directions": shared}
        plain = softmax_job(step=step)
        scalars = drawn(plain, 4, 5)
        logs = [
            aggregated(msgspec.structs.replace(plain, robust=robust), scalars).log
            for robust in (None, Robust(quarantine_after=2), Robust(compare_paths=not shared, max_examples=10**6))
        ]
        assert encode_chain([logs[0]]) == encode_chain([logs[1]]) == encode_chain([logs[2]])


def test_a_device_counts_for_max_examples_at_most() -> None:
    job = msgspec.structs.replace(softmax_job(step={"shared_directions": False}), weighting="examples")
    reports = {"liar": TakenReport(pack_scalars(np.ones((2, 8), np.float32)), 2**40)}
    reports |= {f"d{index}": TakenReport(pack_scalars(np.ones((2, 8), np.float32)), 100) for index in range(4)}
    for robust, share in ((None, 0.999), (Robust(max_examples=100), 0.2)):
        made = aggregate(
            PARAMETERS,
            msgspec.structs.replace(job, robust=robust),
            0,
            RoundPlan(1, job.step),
            RoundBase(SHA, None, None),
            reports,
        )
        weights = {device.device: device.weight for device in made.log.devices}
        assert weights["liar"] == pytest.approx(share, abs=1e-3)


def test_a_large_delta_is_scaled_down_to_the_bound_of_the_round() -> None:
    rng = np.random.Generator(np.random.PCG64(4))
    whole = frozenset({0, 1})
    deltas = {f"d{index}": Delta(1.0, whole, rng.normal(size=SIZE).astype(np.float32)) for index in range(4)}
    part = np.zeros(SIZE, np.float32)
    part[:4] = 1.0  # as large as the others where it has something
    deltas["part"] = Delta(1.0, frozenset({0}), part)
    deltas["large"] = Delta(1.0, whole, -100 * deltas["d0"].movement[0:SIZE])
    bounded = scaled_down(deltas, PARAMETERS, 2, 2.0)
    for name in ("d0", "d1", "d2", "d3", "part"):
        assert bounded[name] is deltas[name]
    sizes = sorted(float(np.sqrt(np.mean(np.square(deltas[f"d{index}"].movement[0:SIZE])))) for index in range(4))
    scaled = float(np.sqrt(np.mean(np.square(bounded["large"].movement[0:SIZE]))))
    assert 2 * sizes[0] * 0.99 <= scaled <= 2 * sizes[-1] * 1.01
    zeros = {name: Delta(1.0, whole, np.zeros(SIZE, np.float32)) for name in "ab"}
    assert scaled_down(zeros, PARAMETERS, 2, 2.0) == zeros


@pytest.mark.parametrize("robust", OPTIONS)
def test_with_one_attacker_of_five_the_fleet_keeps_most_of_what_it_would_lose(robust: Robust) -> None:
    """Held-out accuracy, a mean over three fleets; docs/robust.md has it over ten."""
    attacks: dict[int, Attack] = {2: flip_ten_times}
    without, attacked, defended = (
        np.mean([train(softmax_job(robust=options), *fleet_rows(5, None, seed), who).accuracy for seed in (0, 1, 2)])
        for options, who in ((None, {}), (None, attacks), (robust, attacks))
    )
    assert attacked < without - 0.15
    assert defended - attacked > 0.6 * (without - attacked)
