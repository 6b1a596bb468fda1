"""Presence that can be believed: epochs, ghosts, a broker without its store, devices that do not accept or refuse."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from bench import FORWARD_ONLY, JOB, Bench, ScriptedDevice, bench_of, birth_of, coordinator, good_report, run_with
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.network.in_process import Hub
from edge_runtime.network.transport import Connected, Message
from edge_runtime.protocol.messages import decode_message, encode_message
from edge_runtime.protocol.plans import TrainPlan
from edge_runtime.protocol.presence import Birth, DeviceState, Hello
from edge_runtime.protocol.reports import PlanAccepted, PlanRefused
from edge_runtime.protocol.topics import hello_topic
from server.fleet.rest import FIRST_PAUSE_S, LONGEST_PAUSE_S, next_rest
from server.storage import queries

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle


class Clock:
    """Seconds that pass with every look at them, so that no test waits."""

    def __init__(self, step_s: float) -> None:
        self.now, self.step_s = 0.0, step_s

    def __call__(self) -> float:
        self.now += self.step_s
        return self.now


@pytest.fixture
def bench(tmp_path: Path, tiny_bundle: Bundle) -> Iterator[Bench]:
    with bench_of(tmp_path, tiny_bundle) as made:
        yield made


def accepted(plan: TrainPlan, name: str) -> PlanAccepted:
    return PlanAccepted(job=plan.job, round=plan.round, attempt=plan.attempt, device=name)


def refused(plan: TrainPlan, name: str, message: str, code: int = 8) -> PlanRefused:
    return PlanRefused(job=plan.job, round=plan.round, attempt=plan.attempt, device=name, code=code, message=message)


def ghost(bench: Bench, name: str, epoch: str | None) -> None:
    """Leave a retained birth and state of a device that is gone."""
    birth = birth_of(name, FORWARD_ONLY, rows=5, epoch=epoch)
    state = DeviceState(state="online", boot_id="1", epoch=epoch)
    bench.hub.publish(bench.topic("birth", name), encode_message(birth), retain=True)
    bench.hub.publish(bench.topic("state", name), encode_message(state), retain=True)


def test_a_ghost_is_in_no_cohort(bench: Bench) -> None:
    ghost(bench, "ghost", None)
    ghost(bench, "older", "an epoch long ago")
    phone = ScriptedDevice(bench, "phone", lambda plan: [accepted(plan, "phone"), good_report(plan, "phone")])
    with coordinator(bench, JOB) as (made, ledger):
        assert run_with(made, [phone])
        offered = {offer.device for offer in queries.offers_of(ledger, "job")}
    assert offered == {"phone"}
    assert not made.devices["ghost"].is_here


def test_an_agent_answers_each_epoch_once_and_names_it(bench: Bench) -> None:
    server = bench.hub.join()
    for kind in ("birth", "state"):
        server.subscribe(bench.topic(kind))  # type: ignore[arg-type]
    agent = bench.agent()
    for epoch in ("one", "one", "two"):
        bench.hub.publish(hello_topic("default"), encode_message(Hello(epoch=epoch, covey_version="0")), retain=True)
    for _ in range(6):
        agent.serve_waiting()
    births, states = [], []
    while (event := server.receive(0)) is not None:
        if isinstance(event, Message) and event.topic.endswith("birth"):
            births.append(decode_message(event.payload, Birth))
        elif isinstance(event, Message):
            states.append(decode_message(event.payload, DeviceState))
    assert [birth.epoch for birth in births] == [None, "one", "two"]
    assert [state.epoch for state in states] == [None, "one", "two"]
    assert {birth.connection for birth in births} == {1}


def test_a_plan_that_a_broker_lost_is_sent_again_after_the_reconnect(bench: Bench) -> None:
    """The broker is killed after the plan was published, and comes back with an empty store."""
    seen: list[int] = []

    def answer(plan: TrainPlan) -> list[Any]:
        seen.append(plan.attempt)
        return [] if len(seen) == 1 else [accepted(plan, "phone"), good_report(plan, "phone")]

    phone = ScriptedDevice(bench, "phone", answer)
    job = msgspec.structs.replace(JOB, rounds=1, accept_s=1e6, deadline_s=1e6)
    with coordinator(bench, job) as (made, _):
        transport = made.coordinator._services.transport

        def turn() -> bool:
            phone.turn()
            if len(seen) == 1:
                seen.append(-1)
                transport.deliver(Connected())  # type: ignore[attr-defined]
            return len(seen) > 4

        assert made.run(turn)
    assert seen == [0, -1, 0]


def test_a_device_that_does_not_accept_costs_accept_s_and_not_the_deadline(bench: Bench) -> None:
    good = ScriptedDevice(bench, "good", lambda plan: [accepted(plan, "good"), good_report(plan, "good")])
    deaf = ScriptedDevice(bench, "deaf", lambda _plan: [])
    clock = Clock(4.0)
    job = msgspec.structs.replace(JOB, rounds=2, min_devices=2, accept_s=20.0, deadline_s=100_000.0)
    with coordinator(bench, job, clock) as (made, ledger):
        assert run_with(made, [good, deaf])
        offers = queries.offers_of(ledger, "job")
    assert clock.now < 5_000
    assert [offer.detail for offer in offers if offer.device == "deaf"] == ["it did not accept the plan within 20 s"]
    assert {offer.state for offer in offers if offer.device == "good"} == {"reported"}
    assert made.devices["deaf"].state == "silent"


def test_a_silent_device_is_back_once_it_speaks(bench: Bench) -> None:
    late: list[TrainPlan] = []

    def answer(plan: TrainPlan) -> list[Any]:
        if plan.round == 0:
            late.append(plan)
            return []
        return [accepted(plan, "late"), good_report(plan, "late")]

    device = ScriptedDevice(bench, "late", answer)
    job = msgspec.structs.replace(JOB, rounds=1, accept_s=20.0, deadline_s=500.0, max_attempts=3)
    with coordinator(bench, job, Clock(4.0)) as (made, _):

        def turn() -> bool:
            device.turn()
            known = made.devices.get("late")
            if late and known is not None and known.state == "silent":
                plan = late.pop()
                device.send("report", accepted(plan, "late"))
                device.answer = lambda plan: [accepted(plan, "late"), good_report(plan, "late")]
            return False

        assert made.run(turn)
    assert made.devices["late"].is_here


def test_a_restarted_device_is_here_whatever_overtakes_what(bench: Bench) -> None:
    """A broker keeps order within a topic only: birth and state of a start overtake each other, a last will is late."""
    states = {
        "online 1": DeviceState(state="online", boot_id="1", epoch="now"),
        "lost 1": DeviceState(state="lost", boot_id="1"),
        "online 2": DeviceState(state="online", boot_id="2", epoch="now"),
    }
    with coordinator(bench, JOB) as (made, _):
        fleet = made.coordinator
        while fleet.handle_next(0.0):
            pass
        fleet.roster.begin_epoch("now", 0.0)
        for order in itertools.permutations(["birth 2", "online 2", "lost 1"]):
            name = "-".join(order).replace(" ", "")
            births = {
                boot: msgspec.structs.replace(birth_of(name, FORWARD_ONLY, epoch="now"), boot_id=boot) for boot in "12"
            }
            for what in ("birth 1", "online 1", *order):
                kind, boot = what.split()
                message = births[boot] if kind == "birth" else states[what]
                bench.hub.publish(
                    bench.topic("birth" if kind == "birth" else "state", name), encode_message(message), retain=False
                )
        while fleet.handle_next(0.0):
            pass
        assert {name: device.is_here for name, device in fleet.devices.items()} == dict.fromkeys(fleet.devices, True)
        assert len(fleet.devices) == 6


def test_when_everybody_refuses_the_job_waits_and_says_why(bench: Bench) -> None:
    """Today's five attempts within a second are spread over growing pauses, and do not use up the attempts."""
    offered: list[float] = []
    clock = Clock(10.0)

    def answer(plan: TrainPlan) -> list[Any]:
        offered.append(clock.now)
        if len(offered) <= 4:
            return [refused(plan, "full", "no space left on device")]
        return [accepted(plan, "full"), good_report(plan, "full")]

    device = ScriptedDevice(bench, "full", answer)
    job = msgspec.structs.replace(JOB, rounds=1, max_attempts=2, accept_s=1e6, deadline_s=1e6)
    waiting: list[Any] = []
    with coordinator(bench, job, clock) as (made, ledger):
        made.job_run.observe = waiting.append
        assert run_with(made, [device])
        assert queries.offers_of(ledger, "job")[0].detail == "no space left on device"
    pauses = [later - earlier for earlier, later in itertools.pairwise(offered)]
    assert all(pause >= FIRST_PAUSE_S * 2**n for n, pause in enumerate(pauses))
    assert {"full": "no space left on device"} in [
        event.resting for event in waiting if type(event).__name__ == "Waiting"
    ]


def test_a_device_that_connects_anew_is_asked_at_once(bench: Bench) -> None:
    offered: list[float] = []
    clock = Clock(0.01)

    def answer(plan: TrainPlan) -> list[Any]:
        offered.append(clock.now)
        if len(offered) == 1:
            return [refused(plan, "pi", "its rows are unusable", 4)]
        return [accepted(plan, "pi"), good_report(plan, "pi")]

    device = ScriptedDevice(bench, "pi", answer)
    job = msgspec.structs.replace(JOB, rounds=1, max_attempts=2)
    with coordinator(bench, job, clock) as (made, _):

        def turn() -> bool:
            device.turn()
            if len(offered) == 1 and device.birth.connection == 1:
                device.birth = msgspec.structs.replace(device.birth, connection=2)
                device.announce(device.epoch)
            return False

        assert made.run(turn)
    assert offered[1] - offered[0] < FIRST_PAUSE_S


def test_many_devices_that_have_not_heard_the_hello_get_one_and_it_is_said_again_ever_more_rarely(bench: Bench) -> None:
    clock = Clock(0.0)
    watcher = bench.hub.join()
    watcher.subscribe(hello_topic("default"))
    with coordinator(bench, JOB, clock) as (made, _):
        server = made.coordinator
        assert server.handle_next(0)  # the connection

        def hellos() -> int:
            while server.handle_next(0):
                pass
            count = 0
            while (event := watcher.receive(0)) is not None:
                count += isinstance(event, Message)
            return count

        assert hellos() == 1
        for index in range(50):
            ghost(bench, f"late-{index}", None)
        assert hellos() == 1
        found = []
        for _ in range(200):
            clock.now += 1.0
            ghost(bench, "late-0", "an epoch long ago")
            found.append(hellos())
        assert sum(found[:10]) >= 3
        assert sum(found[100:]) <= 3


@given(times=st.integers(1, 60), now=st.floats(0, 1e9))
def test_rests_double_up_to_the_longest(times: int, now: float) -> None:
    rest = None
    for _ in range(times):
        rest = next_rest(rest, "no space", now)
    assert rest is not None
    assert rest.times == times
    assert rest.until - now == pytest.approx(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** (times - 1)), abs=1e-3)


def test_hub_is_a_broker_that_may_lose_its_store() -> None:
    hub = Hub()
    hub.publish("a/b", b"x", retain=True)
    member = hub.join()
    member.subscribe("a/+")
    assert [type(member.receive(0)), type(member.receive(0))] == [Connected, Message]


def test_a_fleet_whose_answers_wait_behind_what_the_broker_retains_hears_one_hello(bench: Bench) -> None:
    """A server that starts gets the retained announcements of all devices first; reading them takes it long."""
    clock = Clock(0.0)
    watcher = bench.hub.join()
    watcher.subscribe(hello_topic("default"))
    with coordinator(bench, JOB, clock) as (made, _):
        server = made.coordinator
        for index in range(50):
            ghost(bench, f"pi-{index}", "of another server")
        assert server.handle_next(0)  # the connection
        for index in range(49):
            ghost(bench, f"pi-{index}", server.roster.epoch)
        hellos = 0
        while server.handle_next(0):
            clock.now += 0.5  # a busy machine
            while (event := watcher.receive(0)) is not None:
                hellos += isinstance(event, Message)
        assert len(server.roster.online()) == 49
    while (event := watcher.receive(0)) is not None:
        hellos += isinstance(event, Message)
    assert hellos == 2  # the first, and one for the device that has not answered when nothing was left to read
