"""Agents and plans with a frozen front: what they report, what they keep, and a job that unfreezes it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from bench import Bench, bench_of, drain, sync
from msgspec import UNSET

from edge_runtime.agent.config import FrontRules
from edge_runtime.protocol.messages import encode_message
from edge_runtime.protocol.plans import AdapterRef
from edge_runtime.protocol.privacy import Privacy
from edge_runtime.protocol.reports import RoundReport
from edge_runtime.protocol.step_rule import StepRule
from edge_runtime.store.store import Store

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


def rounds(
    bench: Bench, rules: list[StepRule], start: int = 0, adapter: AdapterRef | None = None, **changes: Any
) -> list[RoundReport]:
    """Train rounds of 24 rows each, which are the device's 12 rows twice; each starts from the same adapter.

    One process does them all: the next plan is sent when the last one was answered.
    """
    adapter = adapter or bench.initial()
    plan = bench.train_plan(adapter, steps=6, batch_size=4, **changes)
    plans: list[Any] = [
        msgspec.structs.replace(plan, rule=rule, round=index) for index, rule in enumerate(rules, start)
    ]
    plans.append(sync(bench, adapter, start + len(rules)))
    server, found, stop_at = bench.hub.join(), {}, time.monotonic() + 60
    server.subscribe(bench.topic("report"))

    def send() -> None:
        bench.hub.publish(bench.topic("plan"), encode_message(plans.pop(0)), retain=False)

    def should_stop() -> bool:
        for report in drain(server):
            if isinstance(report, RoundReport) and report.round >= start and report.round not in found:
                found[report.round] = report
                send()
        return time.monotonic() > stop_at

    agent = bench.agent()
    send()
    agent.run(until_finished=True, should_stop=should_stop)
    return [found[index] for index in sorted(found)]


def keep_nothing(bench: Bench) -> None:
    """Go on as a new device of the same name and rows that keeps no activations."""
    state = bench.root / "nothing"
    bench.config = msgspec.structs.replace(bench.config, state_dir=str(state), fronts=FrontRules(cache_mb=0))
    bench.store = Store(state)


def test_reports_say_what_was_looked_up_and_what_was_run(bench: Bench) -> None:
    first, second = rounds(bench, [FROZEN, FROZEN])
    assert (first.front_hits, first.front_misses, first.front_passes) == (12, 12, 3)
    assert (second.front_hits, second.front_misses, second.front_passes) == (24, 0, 0)
    assert first.back_passes == second.back_passes == 6 * 6
    assert len(first.scalars) == 4 * 6 * 3


def test_a_front_that_cannot_be_kept_is_run_once_for_each_step(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What crosses the cut is not understood: each of the six batches is a run, and says so."""
    monkeypatch.setattr("edge_runtime.fronts.kept_front.learn_frame", lambda *_arguments: None)
    for report in rounds(bench, [FROZEN, FROZEN]):
        assert (report.front_hits, report.front_misses, report.front_passes) == (0, 24, 6)


def test_a_restarted_device_goes_on_with_what_it_kept(bench: Bench) -> None:
    rounds(bench, [FROZEN])
    (after,) = rounds(bench, [FROZEN], start=1)
    assert after.front_misses == 0
    assert after.front_passes == 0  # nothing is compared again before the machine itself has started again


def test_scalars_are_those_of_a_device_that_keeps_nothing(bench: Bench, tmp_path: Path) -> None:
    kept = rounds(bench, [FROZEN, FROZEN, FROZEN])
    keep_nothing(bench)
    plain = rounds(bench, [FROZEN, FROZEN, FROZEN])
    assert [report.scalars for report in kept] == [report.scalars for report in plain]
    assert [report.front_misses for report in plain] == [24, 24, 24]
    assert [path.parent.parent.name for path in tmp_path.rglob("*.front")] == ["state"]


def test_a_job_that_unfreezes_the_front_gets_the_scalars_it_should(bench: Bench) -> None:
    """With the activations still there, a trained front is run; frozen again, it is looked up."""
    kept = rounds(bench, [FROZEN, TRAINED, FROZEN], split=1)
    assert [report.front_misses for report in kept] == [12, UNSET, 0]
    assert kept[1].front_passes == 6 * 2
    keep_nothing(bench)
    plain = rounds(bench, [FROZEN, TRAINED, FROZEN], split=1)
    assert [report.scalars for report in kept] == [report.scalars for report in plain]


def test_an_adapter_with_another_front_is_run_anew(bench: Bench) -> None:
    """As after rounds that have trained the front: activations of the old one are not used."""
    rounds(bench, [FROZEN], split=1)
    theta = bench.bundle.initial_adapter()
    theta[:3] += np.float32(0.25)
    moved = AdapterRef(bench.blobs.add(theta.tobytes()), None, None)
    (kept,) = rounds(bench, [FROZEN], start=1, adapter=moved, split=1)
    assert kept.front_misses == 12
    keep_nothing(bench)
    (plain,) = rounds(bench, [FROZEN], start=1, adapter=moved, split=1)
    assert kept.scalars == plain.scalars


def test_private_rounds_do_not_say_what_was_looked_up(bench: Bench) -> None:
    """The first runs the front for every row, the second for none: what they say of the front is the same."""
    for report in rounds(bench, [FROZEN, FROZEN], privacy=Privacy(1.0, 1.0)):
        assert (report.front_hits, report.front_misses) == (UNSET, UNSET)
        assert (report.front_passes, report.front_seconds) == (6, 0.0)


def test_a_private_round_that_trains_the_front_says_its_passes(bench: Bench) -> None:
    (report,) = rounds(bench, [TRAINED], privacy=Privacy(1.0, 1.0), split=1)
    assert report.front_passes == 6 * 2
    assert report.front_seconds > 0
