"""A device whose clock is ten years off when it boots, or jumps while it trains: it reports the same, and goes on."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Any

import pytest
from bench import Bench, bench_of, drain
from hybrid import answers, backprop_plan, make_agent

from edge_runtime.protocol.messages import encode_message
from edge_runtime.protocol.reports import RoundReport
from edge_runtime.signing.sequence import SequenceStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle

DECADE_S = 10 * 365.25 * 86_400.0
TRUE_S = time.time()
real_time = time.time


def ahead() -> Callable[[], float]:
    return lambda: real_time() + DECADE_S


def behind() -> Callable[[], float]:
    return lambda: real_time() - DECADE_S


def at_zero() -> Callable[[], float]:
    """A board without a battery, whose kernel begins in 1970."""
    return lambda: real_time() - TRUE_S


def jumping() -> Callable[[], float]:
    """Each reading is ten years from the one before."""
    signs = itertools.cycle([0.0, 1.0, -1.0])
    return lambda: real_time() + next(signs) * DECADE_S


CLOCKS = [ahead, behind, at_zero, jumping]


def rounds(root: Path, bundle: Bundle, clock: Callable[[], float], monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Train two rounds with a restart between them, on a machine with this clock; return what was reported."""
    with bench_of(root, bundle) as bench, monkeypatch.context() as patched:
        patched.setattr(time, "time", clock)
        patched.setattr(time, "time_ns", lambda: int(clock() * 1e9))
        return [trained(bench, bench.train_plan(bench.initial(), round=index)) for index in range(2)]


def trained(bench: Bench, plan: Any) -> Any:
    server, agent = bench.hub.join(), bench.agent()
    server.subscribe(bench.topic("report"))
    bench.hub.publish(bench.topic("plan"), encode_message(plan), retain=False)
    for _ in range(4):
        agent.serve_waiting()
    report = drain(server)[-1]
    assert isinstance(report, RoundReport), report
    return report.scalars, report.examples


@pytest.mark.parametrize("clock", CLOCKS)
def test_what_is_trained_does_not_depend_on_the_clock(
    clock: Callable[[], Callable[[], float]], tmp_path: Path, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("right", "wrong"):
        (tmp_path / folder).mkdir()
    right = rounds(tmp_path / "right", tiny_bundle, real_time, monkeypatch)
    assert rounds(tmp_path / "wrong", tiny_bundle, clock(), monkeypatch) == right


@pytest.mark.parametrize("clock", CLOCKS)
def test_personal_layers_outlive_a_wrong_clock(
    clock: Callable[[], Callable[[], float]], bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(bench, make_agent(bench), ("plan", backprop_plan(bench)))
    before = bench.store.journal().personal_sha256
    assert before is not None
    with monkeypatch.context() as patched:
        patched.setattr(time, "time", clock())
        answers(bench, make_agent(bench), ("plan", backprop_plan(bench, round=1)))
    assert bench.store.journal().personal_before_sha256 == before


def test_message_numbers_ascend_whatever_the_clock_says(tmp_path: Path) -> None:
    def numbers() -> Iterator[int]:
        for offset_s in (0.0, DECADE_S, -DECADE_S, -TRUE_S):
            store = SequenceStore(tmp_path / "sequence.json", lambda: int((TRUE_S + offset_s) * 1e6))  # noqa: B023
            for _ in range(3):
                yield store.take()

    taken = list(numbers())
    assert taken == sorted(set(taken))
