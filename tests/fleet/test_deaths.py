"""A device that dies while it trains begins the plan once more, then refuses it, and is given less."""

from __future__ import annotations

import dataclasses
import json
import signal
from typing import TYPE_CHECKING, Any

import pytest
from fleets import Fleet, Process, free_port, wait_for, write_job
from hybrid import answers, backprop_plan, make_agent

from edge_runtime.agent.deaths import FIRST_PAUSE_S, MOST_DEATHS, MOST_RESTARTS
from edge_runtime.bundle.memory_need import bytes_for, level_need
from edge_runtime.device.eligibility import EligibilityRules
from edge_runtime.device.machine import this_machine
from edge_runtime.errors import StorageError, TrainingError
from edge_runtime.protocol.reports import DeltaReport, PlanAccepted, PlanRefused, RoundReport
from edge_runtime.store.journal import JOURNAL_FILE

if TYPE_CHECKING:
    from pathlib import Path

    from bench import Bench

    from edge_runtime.agent.agent import Agent
    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.protocol.plans import BackpropPlan, TrainPlan

FREE_BYTES = 987_000_000


def train(bench: Bench, plan: Any, bytes_free: int | None = FREE_BYTES) -> Any:
    """Start a device, give it a plan, and return its last answer."""
    return answers(bench, make_agent(bench, bytes_free), ("plan", plan))[-1]


def die(bench: Bench, plan: Any, bytes_free: int | None = FREE_BYTES, agent: Agent | None = None) -> list[Any]:
    """Start a device that is killed while it trains: its disk stays as it was at that moment."""
    agent = agent or make_agent(bench, bytes_free)
    left: list[bytes] = []

    def killed(*_: Any) -> Any:
        left.append((bench.store.root / JOURNAL_FILE).read_bytes())

    agent._trainer.train = killed  # type: ignore[method-assign]
    said = answers(bench, agent, ("plan", plan))
    if left:
        (bench.store.root / JOURNAL_FILE).write_bytes(left[0])
    return said


def forward_plan(bench: Bench, **changes: Any) -> TrainPlan:
    return bench.train_plan(bench.initial(), **changes)


PLANS = pytest.mark.parametrize("plan_of", [backprop_plan, forward_plan], ids=["backprop", "forward-only"])


@PLANS
def test_the_second_death_on_a_plan_is_a_refusal_at_the_third_offer(bench: Bench, plan_of: Any) -> None:
    plan: BackpropPlan | TrainPlan = plan_of(bench)
    for _ in range(MOST_DEATHS):
        assert [type(answer) for answer in die(bench, plan)] == [PlanAccepted]
    for _ in range(3):  # as often as it is offered
        refused = train(bench, plan)
        assert isinstance(refused, PlanRefused)
        assert (refused.code, refused.round) == (TrainingError.exit_code, 0)
        assert "this device died twice while it trained this plan, probably for want of memory" in refused.message
        assert "987 MB there" in refused.message
    if plan_of is backprop_plan:
        needed = bytes_for(level_need(bench.bundle.manifest, 2), plan.stld.fewest_rows)  # type: ignore[union-attr]
        assert f"{needed / 1e6:.1f} MB needed" in refused.message
    else:
        assert "needed" not in refused.message  # nobody has estimated it


@PLANS
def test_one_death_is_none(bench: Bench, plan_of: Any) -> None:
    die(bench, plan_of(bench))
    assert isinstance(train(bench, plan_of(bench)), (RoundReport, DeltaReport))
    assert bench.store.journal().deaths is None
    die(bench, plan_of(bench, round=1))
    assert isinstance(train(bench, plan_of(bench, round=1)), (RoundReport, DeltaReport))


@pytest.mark.parametrize("changes", [{"attempt": 1}, {"round": 1}, {"round": 3, "attempt": 2}])
@PLANS
def test_deaths_count_for_the_same_work_in_another_attempt_or_round(
    bench: Bench, plan_of: Any, changes: dict[str, Any]
) -> None:
    die(bench, plan_of(bench))
    die(bench, plan_of(bench, **changes))
    assert isinstance(train(bench, plan_of(bench, **changes)), PlanRefused)


def test_less_is_trained_although_more_has_killed(bench: Bench) -> None:
    for _ in range(MOST_DEATHS):
        die(bench, backprop_plan(bench))
    assert isinstance(train(bench, backprop_plan(bench)), PlanRefused)
    assert isinstance(train(bench, backprop_plan(bench, attempt=1, level=1)), DeltaReport)
    assert isinstance(train(bench, forward_plan(bench, attempt=2)), RoundReport)
    assert isinstance(train(bench, backprop_plan(bench, attempt=3)), PlanRefused)  # it still has killed


def test_a_later_round_is_tried_once_more(bench: Bench) -> None:
    for _ in range(MOST_DEATHS):
        die(bench, forward_plan(bench))
    assert isinstance(train(bench, forward_plan(bench)), PlanRefused)
    die(bench, forward_plan(bench, round=1))
    assert isinstance(train(bench, forward_plan(bench, round=1)), PlanRefused)
    assert isinstance(train(bench, forward_plan(bench, round=2)), RoundReport)
    assert bench.store.journal().deaths is None


@PLANS
def test_a_refusal_ends_by_itself_and_lasts_longer_each_time(bench: Bench, plan_of: Any) -> None:
    """In a job that needs every device, a round that one of them refuses for good could never close."""
    plan = plan_of(bench)
    for _ in range(MOST_DEATHS):
        die(bench, plan)
    for pause_s in (FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S):
        agent, now = make_agent(bench, FREE_BYTES), [1000.0]
        agent._deaths._clock = lambda now=now: now[0]
        for passed_s in (0.0, pause_s - 1.0):
            now[0] = 1000.0 + passed_s
            refused = answers(bench, agent, ("plan", plan))[-1]
            assert isinstance(refused, PlanRefused)
            assert f"it tries it again in {max(1, round((pause_s - passed_s) / 60))} min" in refused.message
        now[0] = 1000.0 + pause_s
        assert isinstance(die(bench, plan, agent=agent)[-1], PlanAccepted)
    agent, now = make_agent(bench, FREE_BYTES), [0.0]
    agent._deaths._clock = lambda: now[0]
    assert isinstance(answers(bench, agent, ("plan", plan))[-1], PlanRefused)
    now[0] = 8 * FIRST_PAUSE_S
    assert isinstance(answers(bench, agent, ("plan", plan))[-1], (RoundReport, DeltaReport))
    assert bench.store.journal().deaths is None


def machine_started(bench: Bench, number: int) -> Agent:
    """Start a device on a machine that has started for the n-th time."""
    agent = make_agent(bench, FREE_BYTES, boot_id=f"start-{number}")
    assert agent._machine.boot_id == f"start-{number}"
    return agent


@PLANS
def test_a_power_cut_is_no_death_for_want_of_memory(bench: Bench, plan_of: Any) -> None:
    plan = plan_of(bench)
    for number in range(MOST_RESTARTS - 1):
        assert isinstance(die(bench, plan, agent=machine_started(bench, number))[-1], PlanAccepted)
    done = answers(bench, machine_started(bench, MOST_RESTARTS), ("plan", plan))[-1]
    assert isinstance(done, (RoundReport, DeltaReport))


@PLANS
def test_a_board_that_starts_again_and_again_in_the_same_work_refuses_it(bench: Bench, plan_of: Any) -> None:
    """A board that hangs for want of memory until somebody pulls the plug looks like one without power."""
    plan = plan_of(bench)
    for number in range(MOST_RESTARTS):
        die(bench, plan, agent=machine_started(bench, number))
    refused = answers(bench, machine_started(bench, MOST_RESTARTS), ("plan", plan))[-1]
    assert isinstance(refused, PlanRefused)
    assert f"this device's machine has started again {MOST_RESTARTS} times" in refused.message


def test_the_kernels_boot_id_is_read(bench: Bench) -> None:
    started = this_machine(EligibilityRules(), bench.store.root).boot_id
    assert started is not None
    assert started == this_machine(EligibilityRules(), bench.store.root).boot_id
    assert len(started) == 36


def test_what_is_not_known_is_left_out(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = dataclasses.replace(make_agent(bench)._machine, free_bytes=lambda: None)
    monkeypatch.setattr("hybrid.this_machine", lambda *_: unknown)
    for _ in range(MOST_DEATHS):
        die(bench, forward_plan(bench), None)
    refused = train(bench, forward_plan(bench), None)
    assert refused.message.startswith(
        "this device died twice while it trained this plan, probably for want of memory; it tries"
    )


@pytest.mark.parametrize("how", ["refused", "abandoned", "stopped"])
def test_what_ends_in_order_is_no_death(bench: Bench, how: str) -> None:
    for _ in range(MOST_DEATHS + 1):
        agent = make_agent(bench, FREE_BYTES)
        if how == "refused":

            def fails(*_: Any) -> Any:
                raise StorageError("disk full")

            agent._trainer.train = fails  # type: ignore[method-assign]
        plan = forward_plan(bench, steps=3, deadline_s=1e-9 if how == "abandoned" else 60.0)
        if how == "stopped":
            agent._should_stop = lambda: True
            assert isinstance(answers(bench, agent, ("plan", plan))[-1], RoundReport)
        else:
            assert len(answers(bench, agent, ("plan", plan))) == (2 if how == "refused" else 1)
        assert bench.store.journal().begun is None
    assert make_agent(bench)._journal.entries.deaths is None


def test_a_told_stop_is_in_the_journal_before_the_round_ends(bench: Bench) -> None:
    """A supervisor kills what does not stop in time."""
    agent = make_agent(bench, FREE_BYTES)
    seen: list[bool] = []

    def should_stop() -> bool:
        seen.append(bench.store.journal().begun is None)
        return True

    agent._should_stop = should_stop
    answers(bench, agent, ("plan", forward_plan(bench, steps=3)))
    assert seen == [False, True, True]


def test_a_disk_that_is_full_does_not_keep_a_device_from_starting(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    die(bench, forward_plan(bench))

    def full(*_: Any) -> None:
        raise StorageError("disk full", "free some space")

    with monkeypatch.context() as patched:
        patched.setattr(bench.store, "write_journal", full)
        make_agent(bench)
    assert "is not counted" in caplog.text
    assert isinstance(train(bench, forward_plan(bench)), RoundReport)


# -- real processes, killed with signal 9 -----------------------------------------------------------------------------


def begun(fleet: Fleet) -> dict[str, Any] | None:
    """What the device's journal says is being trained."""
    path = fleet.root / "pi" / "covey-state" / JOURNAL_FILE
    found: dict[str, Any] | None = json.loads(path.read_bytes())["begun"] if path.is_file() else None
    return found


def start_and_train(fleet: Fleet) -> tuple[Process, dict[str, Any]]:
    """Start the device, and wait until it trains; return what its journal says of that."""
    before, device = begun(fleet), fleet.device("pi", 0, stays=True)

    def found() -> dict[str, Any] | None:
        assert device.popen.poll() is None, device.stderr.read_text()
        now = begun(fleet)
        return None if now == before else now

    return device, wait_for(found, "a plan that is being trained")


def kill_in_training(fleet: Fleet, server: Process) -> dict[str, Any]:
    """Start the device, kill it while it trains, and wait until the server knows; return what it had begun."""

    def ends() -> int:
        return sum(event.get("state") == "lost" for event in server.events() if event["event"] == "device")

    before = ends()
    device, trains = start_and_train(fleet)
    device.popen.kill()
    device.popen.wait(60)
    wait_for(lambda: ends() > before, "the device's end")
    return trains


def refusals(server: Process) -> list[str]:
    return [event["reason"] for event in server.events() if event["event"] == "offer_failed"]


@pytest.mark.timeout(900)
def test_a_device_killed_twice_in_training_refuses(tmp_path: Path, tiny_bundle: Bundle) -> None:
    """kill -9 of a real process in two rounds; it says so when it is offered the same again, and lives."""
    fleet = Fleet(tmp_path, tiny_bundle, free_port(), external=False)
    try:
        server = fleet.serve(write_job(tmp_path, rounds=1, steps=4_000, max_attempts=9, deadline_s=100.0))
        for _ in range(MOST_DEATHS):
            kill_in_training(fleet, server)
        device = fleet.device("pi", 0, stays=True)
        wait_for(lambda: any("died twice while it trained" in said for said in refusals(server)), "a refusal")
        assert device.popen.poll() is None
        assert "2 times in a row" in device.stderr.read_text()
    finally:
        fleet.stop()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_device_killed_twice_at_a_level_is_given_a_lower_one(tmp_path: Path, graphs: Bundle) -> None:
    fleet = Fleet(tmp_path, graphs, free_port(), external=False)
    job = write_job(tmp_path, rounds=1, max_attempts=9, deadline_s=100.0, stld={"steps": 4_000, "batch_size": 4})
    try:
        server = fleet.serve(job)
        deaths = [kill_in_training(fleet, server) for _ in range(MOST_DEATHS)]
        assert [trains["level"] for trains in deaths] == [3, 3]
        device = fleet.device("pi", 0, stays=True)
        wait_for(lambda: any("died twice while it trained" in said for said in refusals(server)), "a refusal")
        wait_for(lambda: (begun(fleet) or {}).get("level") == 2, "a lower level")
        assert device.popen.poll() is None
    finally:
        fleet.stop()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_device_that_is_told_to_stop_has_not_died(tmp_path: Path, tiny_bundle: Bundle) -> None:
    """Its supervisor says stop (SIGTERM), and kills it when the round takes longer than it waits."""
    fleet = Fleet(tmp_path, tiny_bundle, free_port(), external=False)
    try:
        server = fleet.serve(write_job(tmp_path, rounds=1, steps=4_000, max_attempts=9, deadline_s=100.0))
        device, _ = start_and_train(fleet)
        device.popen.send_signal(signal.SIGTERM)
        wait_for(lambda: begun(fleet) is None, "the journal's word")
        device.popen.kill()
        device.popen.wait(60)
        start_and_train(fleet)
        assert json.loads((tmp_path / "pi" / "covey-state" / JOURNAL_FILE).read_bytes())["deaths"] is None
        assert not any("died" in said for said in refusals(server))
    finally:
        fleet.stop()
