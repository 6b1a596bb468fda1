"""Devices that run against the others: their cosines, and the rule that names them without accusing honest ones."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from byzantine import (
    PARAMETERS,
    SIZE,
    Attack,
    Trained,
    fleet_rows,
    flip,
    flip_ten_times,
    softmax_job,
    train,
    train_deltas,
)

from edge_runtime.forward_only.replay import replay
from edge_runtime.protocol.round_log import DeviceScalars, RoundLog, pack_scalars
from edge_runtime.protocol.step_rule import StepRule
from server.job.robust import Robust
from server.rounds.agreement import delta_agreement, forward_agreement
from server.rounds.merge import Delta
from server.views.against import LEAST_ROUNDS, against_the_others, mean_cosines

KINDS = ["shared", "own", "delta"]
SHA = "0" * 64


def trained(kind: str, devices: int, alpha: float | None, seed: int, attacks: dict[int, Attack]) -> Trained:
    parts, held_out = fleet_rows(devices, alpha, seed)
    if kind == "delta":
        return train_deltas(30, parts, held_out, attacks)
    robust = Robust(compare_paths=True) if kind == "own" else None
    return train(softmax_job(step={"shared_directions": kind == "shared"}, robust=robust), parts, held_out, attacks)


@pytest.mark.parametrize("kind", KINDS)
def test_an_attacker_with_flipped_signs_is_named_and_nobody_else(kind: str) -> None:
    """Where directions are each device's own, the cosines are small: docs/robust.md has the rates."""
    named = [
        list(against_the_others(trained(kind, 10, None, seed, {3: flip_ten_times}).agreement)) for seed in (0, 1, 2)
    ]
    assert [names for names in named if names not in ([], ["device-3"])] == []
    assert named.count(["device-3"]) >= (2 if kind == "own" else 3)


def test_a_flip_of_honest_size_is_named_too() -> None:
    assert list(against_the_others(trained("shared", 10, None, 0, {7: flip}).agreement)) == ["device-7"]
    assert list(against_the_others(trained("shared", 10, None, 1, {0: flip, 7: flip}).agreement)) == [
        "device-0",
        "device-7",
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_honest_devices_with_unlike_data_are_not_named(kind: str) -> None:
    """Dirichlet 0.1: most devices have one label only. Over more seeds than these, docs/robust.md has the rate."""
    for seed in (0, 1, 2):
        found = trained(kind, 10, 0.1, seed, {})
        assert against_the_others(found.agreement) == {}
        assert any(cosine < 0 for cosines in found.agreement for cosine in cosines.values())


def log_of(rule: StepRule, devices: int, seed: int) -> RoundLog:
    rng = np.random.Generator(np.random.PCG64(seed))
    common = rng.normal(size=(2, rule.scalars_per_step))
    parts = [
        DeviceScalars(
            f"d{index}",
            1 / devices,
            pack_scalars((common + 0.5 * rng.normal(size=common.shape)).astype(np.float32)),
        )
        for index in range(devices)
    ]
    return RoundLog(
        job="job",
        job_seed=1,
        round=0,
        rule=rule,
        front_size=4,
        steps=2,
        mean_square=None,
        momentum=0.0,
        previous_sha256=None,
        base_sha256=SHA,
        result_sha256=SHA,
        devices=parts,
        terms=None,
    )


def replayed_cosines(log: RoundLog) -> dict[str, float]:
    """The definition: replay each device's path alone, give it length 1, and compare it with the sum of the others."""
    theta = np.zeros(SIZE, np.float32)
    paths = []
    for device in log.devices:
        alone = msgspec.structs.replace(log, devices=[msgspec.structs.replace(device, weight=1.0)])
        path = replay(theta, alone).astype(np.float64)
        paths.append(path / np.linalg.norm(path))
    total = np.sum(paths, axis=0)
    return {
        device.device: float(path @ (total - path) / np.linalg.norm(total - path))
        for device, path in zip(log.devices, paths, strict=True)
    }


@pytest.mark.parametrize(("rule", "within"), [(StepRule(), 0.1), (StepRule(shared_directions=True), 0.35)])
def test_the_cosines_are_those_of_the_replayed_paths(rule: StepRule, within: float) -> None:
    """With shared directions they are compared in the space of directions, which are orthogonal on average only."""
    log = log_of(rule, 6, 2)
    found = forward_agreement(log, SIZE, compare_paths=not rule.merges_devices)
    wanted = replayed_cosines(log)
    assert found.keys() == wanted.keys()
    assert all(abs(found[name] - wanted[name]) < within for name in wanted)


def test_who_is_not_compared() -> None:
    assert forward_agreement(log_of(StepRule(), 6, 0), SIZE, compare_paths=False) == {}
    assert forward_agreement(log_of(StepRule(shared_directions=True), 2, 0), SIZE, compare_paths=False) == {}
    log = log_of(StepRule(shared_directions=True), 4, 0)
    still = msgspec.structs.replace(log.devices[0], scalars=pack_scalars(np.zeros((2, 8), np.float32)))
    log = msgspec.structs.replace(log, devices=[still, *log.devices[1:]])
    assert sorted(forward_agreement(log, SIZE, compare_paths=False)) == ["d1", "d2", "d3"]


def test_deltas_are_compared_over_the_layers_that_both_sent() -> None:
    rng = np.random.Generator(np.random.PCG64(1))
    common = rng.normal(size=SIZE)

    def delta(layers: set[int], sign: float) -> Delta:
        moved = sign * (common + 0.3 * rng.normal(size=SIZE)).astype(np.float32)
        for p in PARAMETERS:
            if p.layer not in layers:
                moved[p.offset : p.stop] = 0
        return Delta(1.0, frozenset(layers), moved.astype(np.float32))

    deltas = {"a": delta({0, 1}, 1.0), "b": delta({1}, 1.0), "c": delta({0}, -10.0), "d": delta({0, 1}, 1.0)}
    found = delta_agreement(PARAMETERS, 2, deltas)
    assert found["c"] < -0.8
    assert min(found[name] for name in "abd") > 0.5
    assert delta_agreement(PARAMETERS, 2, {name: deltas[name] for name in "ab"}) == {}


def rounds(count: int, **means: float) -> list[dict[str, float]]:
    rng = np.random.Generator(np.random.PCG64(0))
    return [{name: mean + 0.05 * float(rng.normal()) for name, mean in means.items()} for _ in range(count)]


@pytest.mark.parametrize(
    ("means", "named"),
    [
        ({"a": 0.4, "b": 0.4, "c": 0.4, "d": -0.4}, ["d"]),
        ({"a": 0.4, "b": 0.4, "c": 0.4, "d": -0.1}, []),  # less clearly than the others agree
        ({"a": -0.4, "b": -0.4, "c": -0.4, "d": -0.4}, []),  # near an optimum: everybody runs against the sum
        ({"a": 0.4, "b": -0.4, "c": 0.0, "d": -0.1}, []),  # the others do not agree with each other
        ({"a": 0.4, "b": -0.4}, []),  # one word against another
    ],
)
def test_who_is_named(means: dict[str, Any], named: list[str]) -> None:
    evidence = against_the_others(rounds(LEAST_ROUNDS, **means))
    assert list(evidence) == named
    assert all(f"over {LEAST_ROUNDS} rounds" in text for text in evidence.values())
    assert against_the_others(rounds(LEAST_ROUNDS - 1, **means)) == {}
    assert mean_cosines(rounds(50, **means)) == pytest.approx(means, abs=0.05)
