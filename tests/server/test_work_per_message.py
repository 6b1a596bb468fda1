"""What a message costs the server does not grow with the fleet, nor with the round that it is about."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.fleet.looks import look_pause_s
from server.job.job import Job
from server.rounds import state_machine
from server.rounds.least_versions import LeastVersions
from server.rounds.open_round import OpenRound
from server.rounds.state_machine import OfferState
from server.simulation.run import SimulateOptions, simulate
from server.storage.ledger import Ledger
from server.storage.ledger_address import LEDGER_FILE
from server.storage.records import RoundPlan

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

NAMES = [f"device-{index}" for index in range(6)]
ACCEPT_S = 10.0


def looks_a_message(devices: int, monkeypatch: pytest.MonkeyPatch) -> float:
    """Return how often the server judges one of its devices for each message that it gets."""
    judged = 0
    judge = LeastVersions.judge

    def counting(self: LeastVersions, device: Any) -> None:
        nonlocal judged
        judged += 1
        judge(self, device)

    monkeypatch.setattr(LeastVersions, "judge", counting)
    result = simulate(SimulateOptions(devices=devices, rounds=3, cohort=20, policy=None))
    monkeypatch.undo()
    assert result is not None
    return judged / int(result["messages"])


def test_a_fleet_that_comes_up_and_ends_its_job_is_looked_at_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = looks_a_message(400, monkeypatch), looks_a_message(1600, monkeypatch)
    assert many < 2 * few
    assert many < 20  # looked at after every message, it would be hundreds


def test_small_fleets_are_looked_at_always_and_large_ones_in_proportion() -> None:
    assert look_pause_s(200) == 0.0
    assert look_pause_s(100_000) == pytest.approx(10 * look_pause_s(10_000))
    assert 0.1 < look_pause_s(10_000) < 1.0


moves = st.lists(
    st.tuples(st.sampled_from(["accept", "lose", "refuse", "offer_again", "nothing"]), st.sampled_from(NAMES)),
    max_size=20,
)


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    opened = Ledger(tmp_path_factory.mktemp("ledger") / LEDGER_FILE, durable=False)
    yield opened
    opened.close()


@settings(deadline=None)
@given(history=moves, steps_s=st.lists(st.floats(0.0, 8.0), min_size=20, max_size=20))
def test_offers_that_wait_too_long_are_found_without_looking_at_all(
    ledger: Ledger, history: list[tuple[str, str]], steps_s: list[float]
) -> None:
    """The same offers as by the definition, after any history."""
    opened = _opened(ledger)
    now, offered_at = 0.0, dict.fromkeys(NAMES, 0.0)
    for (kind, name), step_s in zip(history, steps_s, strict=False):
        now += step_s
        if kind == "accept":
            opened.accept(name, 1)
        elif kind == "lose":
            opened.lose(name, "gone")
        elif kind == "refuse":
            opened.refuse(name, "too hot")
        elif kind == "offer_again":
            opened.offer_again(name, now)
            offered_at[name] = now
        waiting = [n for n in NAMES if opened.state.offers[n] is OfferState.OFFERED]
        assert opened.unaccepted(now) == {n: offered_at[n] for n in waiting if now - offered_at[n] > ACCEPT_S}
        assert Counter(opened.state.offers.values()) == +opened.state.counts


def _opened(ledger: Ledger) -> OpenRound:
    job = Job(name="job", eval_file="", accept_s=ACCEPT_S)
    state = state_machine.open_round(0, 0, NAMES, 1000.0, 1, len(NAMES))
    plan = RoundPlan(split=1, rule=job.rule_of(0))
    return OpenRound(job, ledger, lambda _event: None, plan, state, 0.0)
