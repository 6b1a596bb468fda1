"""Agents and plans with a frozen front: what they report, what they keep, and a job that unfreezes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from bench import Bench, bench_of, sync, talk
from msgspec import UNSET

from edge_runtime.agent.config import FrontRules
from edge_runtime.protocol.privacy import Privacy
from edge_runtime.protocol.reports import RoundReport
from edge_runtime.protocol.step_rule import StepRule

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle

FROZEN = StepRule(back_perturbations=3, front="frozen", learning_rate=0.05)
TRAINED = msgspec.structs.replace(FROZEN, front=UNSET)


@pytest.fixture
def bench(tmp_path: Path, tiny_bundle: Bundle) -> Iterator[Bench]:
    with bench_of(tmp_path, tiny_bundle) as made:
        made.blobs.add(made.bundle.initial_adapter().tobytes())
        yield made


def rounds(bench: Bench, rules: list[StepRule], **changes: Any) -> list[RoundReport]:
    """Train rounds of 24 rows each, which are the device's 12 rows twice, all from the first adapter."""
    plan = bench.train_plan(bench.initial(), steps=6, batch_size=4, **changes)
    plans = [msgspec.structs.replace(plan, rule=rule, round=index) for index, rule in enumerate(rules)]
    reports, _ = talk(bench, [*plans, sync(bench, bench.initial(), len(rules))])
    return [report for report in reports if isinstance(report, RoundReport)]


def kept_off(bench: Bench) -> None:
    bench.config = msgspec.structs.replace(bench.config, fronts=FrontRules(cache_mb=0))


def test_reports_say_what_was_looked_up_and_what_was_run(bench: Bench) -> None:
    first, second = rounds(bench, [FROZEN, FROZEN])
    assert (first.front_hits, first.front_misses, first.front_passes) == (12, 12, 3)
    assert (second.front_hits, second.front_misses, second.front_passes) == (24, 0, 0)
    assert first.back_passes == second.back_passes == 6 * 6
    assert len(first.scalars) == 4 * 6 * 3


def test_a_restarted_device_goes_on_with_what_it_kept(bench: Bench) -> None:
    (before,) = rounds(bench, [FROZEN])
    (after,) = rounds(bench, [FROZEN])
    assert after.front_misses == 0
    assert after.front_passes == 1  # the first row that is found is run again, and compared
    assert after.scalars == before.scalars


def test_scalars_are_those_of_a_device_that_keeps_nothing(bench: Bench, tmp_path: Path) -> None:
    kept = rounds(bench, [FROZEN, FROZEN, FROZEN])
    kept_off(bench)
    plain = rounds(bench, [FROZEN, FROZEN, FROZEN])
    assert [report.scalars for report in kept] == [report.scalars for report in plain]
    assert [report.front_misses for report in plain] == [24, 24, 24]
    assert len(list((tmp_path / "state" / "fronts").glob("*.front"))) == 1


def test_a_job_that_unfreezes_the_front_gets_the_scalars_it_should(bench: Bench) -> None:
    """With the activations still there, a trained front is run; frozen again, it is looked up."""
    kept = rounds(bench, [FROZEN, TRAINED, FROZEN], split=1)
    assert [report.front_misses for report in kept] == [12, UNSET, 0]
    assert kept[1].front_passes == 6 * 2
    kept_off(bench)
    plain = rounds(bench, [FROZEN, TRAINED, FROZEN], split=1)
    assert [report.scalars for report in kept] == [report.scalars for report in plain]


def test_an_adapter_with_another_front_is_run_anew(bench: Bench) -> None:
    """As after rounds that have trained the front: activations of the old one are not used."""
    rounds(bench, [FROZEN], split=1)
    theta = bench.bundle.initial_adapter()
    theta[:3] += np.float32(0.25)
    file = bench.blobs.add(theta.tobytes())
    moved = msgspec.structs.replace(bench.initial(), file=file)
    found = []
    for keeps in (True, False):
        if not keeps:
            kept_off(bench)
        plan = bench.train_plan(moved, steps=6, batch_size=4, rule=FROZEN, split=1, round=5)
        reports, _ = talk(bench, [plan, sync(bench, moved)])
        found.append(next(report for report in reports if isinstance(report, RoundReport)))
    assert found[0].front_misses == 12
    assert found[0].scalars == found[1].scalars


def test_a_private_round_does_not_say_what_was_looked_up(bench: Bench) -> None:
    (report,) = rounds(bench, [FROZEN], privacy=Privacy(1.0, 1.0))
    assert (report.front_hits, report.front_misses) == (UNSET, UNSET)
