"""Adaptive P2 and split: estimates from scalars, choices from estimates and times."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.protocol.step_rule import StepRule
from server.job.fitted import FittedJob, fit_to_bundle
from server.job.job import Adaptive, Job
from server.planning.adaptive import next_plan
from server.rounds.aggregate import variances
from server.storage.records import RoundFigures

if TYPE_CHECKING:
    from edge_runtime.bundle.folder import Bundle


def draw(v1: float, v2: float, p1: int, p2: int, steps: int) -> list[list[float]]:
    rng = np.random.Generator(np.random.PCG64(1))
    front = rng.normal(0, math.sqrt(v1), (steps, p1, 1))
    back = rng.normal(0, math.sqrt(v2), (steps, p1, p2))
    rows: list[list[float]] = (front + back).reshape(steps, -1).tolist()
    return rows


@pytest.mark.parametrize(("v1", "v2"), [(1.0, 4.0), (9.0, 1.0), (0.0, 2.0)])
def test_variances_are_found_in_the_scalars(v1: float, v2: float) -> None:
    rule = StepRule(front_perturbations=2, back_perturbations=4)
    found1, found2 = variances(rule, draw(v1, v2, 2, 4, 4000))
    assert found1 == pytest.approx(v1, abs=0.1 * (v1 + v2))
    assert found2 == pytest.approx(v2, rel=0.1)


def test_what_the_scalars_do_not_show_is_none() -> None:
    assert variances(StepRule(back_perturbations=1), [[1.0]]) == (None, None)
    assert variances(StepRule(variant="clean"), [[1.0] * 9]) == (None, None)
    assert variances(StepRule(), []) == (None, None)


def job(bundle: Bundle, **adaptive: Any) -> FittedJob:
    job = Job(name="j", eval_file="x", split=2, schedule="constant", adaptive=Adaptive(**adaptive))
    return fit_to_bundle(job, bundle.manifest, bundle.sha256)


def figures(split: int = 2, **changes: Any) -> RoundFigures:
    known = {"front_variance": 1.0, "back_variance": 4.0, "front_s": 2.0, "back_s": 0.5}
    return RoundFigures(split, **(known | changes))


def test_p2_goes_to_its_optimum_by_steps_of_two(tiny_bundle: Bundle) -> None:
    """sqrt(V2·F1 / (V1·F2)) = sqrt(4 · 2 / (1 · 0.5)) = 4."""
    start = job(tiny_bundle)
    chosen = [next_plan(start, r, [figures()] * r).rule.back_perturbations for r in range(4)]
    assert chosen == [8, 4, 4, 4]
    grown = [next_plan(start, r, [figures(front_variance=0.0)] * r).rule.back_perturbations for r in range(5)]
    assert grown == [8, 16, 32, 32, 32]


def test_without_knowledge_or_permission_nothing_changes(tiny_bundle: Bundle) -> None:
    assert next_plan(job(tiny_bundle), 1, [figures(front_s=None)]).rule.back_perturbations == 8
    assert next_plan(job(tiny_bundle, back_perturbations=False), 3, [figures()] * 3).rule.back_perturbations == 8
    fixed = fit_to_bundle(Job(name="j", eval_file="x", split=1), tiny_bundle.manifest, tiny_bundle.sha256)
    assert next_plan(fixed, 3, [figures()] * 3).split == 1


def test_each_split_is_tried_and_the_cheapest_noise_wins(tiny_bundle: Bundle) -> None:
    assert tiny_bundle.manifest.splits == [1, 2]
    history: list[RoundFigures] = []
    splits = []
    for index in range(5):
        plan = next_plan(job(tiny_bundle, split=True), index, history)
        splits.append(plan.split)
        cheap = {"front_s": 0.1, "back_s": 0.1} if plan.split == 1 else {}
        history.append(figures(plan.split, **cheap))
    assert splits == [1, 2, 1, 1, 1]


@given(
    values=st.lists(st.tuples(*[st.none() | st.floats(0, 1e12, allow_subnormal=False)] * 4), max_size=8),
)
def test_no_figures_lead_out_of_bounds(tiny_bundle: Bundle, values: list[tuple[float | None, ...]]) -> None:
    history = [RoundFigures(2, *row) for row in values]
    plan = next_plan(job(tiny_bundle, split=True, most_back_perturbations=20), len(history), history)
    assert 2 <= plan.rule.back_perturbations <= 20
    assert plan.split in tiny_bundle.manifest.splits
