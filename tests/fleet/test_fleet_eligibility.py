"""Eligibility end to end: a real broker, real agents, sensors that the test holds; and the profile sent again."""

from __future__ import annotations

import contextlib
import datetime as dt
import itertools
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fleets import Fleet, free_port, wait_for, write_edge, write_job
from profiles import PROFILE

from edge_runtime.agent.agent import Agent, Finished
from edge_runtime.agent.announcer import lost_will
from edge_runtime.agent.config import EdgeConfig, read_edge_config
from edge_runtime.bundle.folder import Bundle
from edge_runtime.device.eligibility import Conditions, EligibilityRules
from edge_runtime.device.gate import EVERY_S, Gate
from edge_runtime.device.machine import Machine
from edge_runtime.errors import ConfigError
from edge_runtime.network.address import parse_broker
from edge_runtime.network.in_process import Hub, InProcessTransport
from edge_runtime.network.mqtt import MqttTransport
from edge_runtime.network.transport import Message
from edge_runtime.protocol.messages import decode_message, encode_message
from edge_runtime.protocol.plans import AdapterRef, BlobRef, TrainPlan
from edge_runtime.protocol.presence import Birth, DeviceState, ProfileMessage
from edge_runtime.protocol.profile import PROFILE_FILE
from edge_runtime.protocol.profile_check import encode_profile
from edge_runtime.protocol.reports import DeviceReport, PlanRefused
from edge_runtime.protocol.step_rule import StepRule
from edge_runtime.protocol.topics import topic_for
from edge_runtime.store.store import Store
from server.errors import JobError
from server.fleet.devices import Device
from server.views.progress import Progress

pytestmark = pytest.mark.timeout(900)


class Sensors:
    """Conditions that a test sets, and a clock with which every look is due."""

    def __init__(self, **conditions: Any) -> None:
        self.now = Conditions(**conditions)
        self._times = (EVERY_S * index for index in itertools.count())

    def gate(self, rules: EligibilityRules | None = None) -> Gate:
        noon = dt.time(12, 0)
        return Gate(rules or EligibilityRules(), lambda: self.now, lambda: noon, lambda: next(self._times))


@contextlib.contextmanager
def agent_on(config: EdgeConfig, sensors: Sensors) -> Iterator[list[Finished | None]]:
    """Run an agent in a thread over MQTT, until its job is finished."""
    transport = MqttTransport(
        parse_broker(config.broker), f"covey-{config.name}", will=lost_will(config, "boot"), connect_timeout_s=60
    )
    agent = Agent(config, Store(Path(config.state_dir)), transport, "boot", machine=Machine(sensors.gate()))
    stop, ended = threading.Event(), []
    thread = threading.Thread(target=lambda: ended.append(agent.run(until_finished=True, should_stop=stop.is_set)))
    thread.start()
    try:
        yield ended
    finally:
        stop.set()
        thread.join(30)
        transport.close(agent.goodbye())


@pytest.mark.slow
def test_a_hot_device_gets_no_offer_until_it_is_cool_again(tmp_path: Path, tiny_bundle: Bundle) -> None:
    port = free_port()
    fleet = Fleet(tmp_path, tiny_bundle, port, external=False)
    reason = "91 °C, above 80"  # at the second look: hot it was at the first, so the limit is stricter
    hot, cool = Sensors(temperature_c=91.0, slows_at_c=85.0), Sensors(temperature_c=40.0, slows_at_c=85.0)
    try:
        server = fleet.serve(write_job(tmp_path, rounds=400, min_devices=1, steps=1))
        configs = {
            name: read_edge_config(write_edge(tmp_path / name, name, port, seed))
            for seed, name in enumerate(("cool", "hot"))
        }
        with agent_on(configs["hot"], hot) as hot_end:
            waiting = wait_for(
                lambda: next((e for e in server.events() if e.get("event") == "waiting" and e["ineligible"]), None),
                "a hot device that is waited for",
            )
            assert (waiting["online"], waiting["ineligible"]) == (0, {"hot": reason})
            with agent_on(configs["cool"], cool) as cool_end:
                server.wait_event("round_closed", 3)
                opened = [e["devices"] for e in server.events() if e["event"] == "round_opened"]
                assert {tuple(devices) for devices in opened} == {("cool",)}
                listed = device_list(fleet)
                assert listed["hot"]["ineligible"] == reason
                assert listed["cool"]["ineligible"] is None
                assert f"took no work in round 0 of job job: {reason}" in explain_error(fleet, 0, "hot")
                hot.now = Conditions(temperature_c=82.0, slows_at_c=85.0)  # below the limit, but not cool
                server.wait_event("round_closed", len(opened) + 3)
                hot.now = Conditions(temperature_c=60.0)
                result = server.result()
                wait_for(lambda: hot_end and cool_end, "both devices at the end")
        rounds = [e["devices"] for e in server.events() if e["event"] == "round_opened"]
        assert rounds[len(opened)] == ["cool"]
        assert ["cool", "hot"] in rounds
        assert not [e for e in server.events() if e["event"] in ("offer_failed", "round_abandoned")]
        ends = {end.adapter_sha256 for end in (*hot_end, *cool_end) if end is not None}
        assert ends == {result["adapter_sha256"]}
    finally:
        fleet.stop()


def device_list(fleet: Fleet) -> dict[str, Any]:
    command = [sys.executable, "-m", "server.cli", "device", "list", "--state-dir", str(fleet.state_dir)]
    out = subprocess.run([*command, "--format", "json"], check=True, capture_output=True, text=True).stdout
    return {entry["device"]: entry for entry in json.loads(out)["devices"]}


def explain_error(fleet: Fleet, index: int, device: str) -> str:
    command = [sys.executable, "-m", "server.cli", "job", "explain", str(index), device, "--state-dir"]
    done = subprocess.run([*command, str(fleet.state_dir)], check=False, capture_output=True, text=True)
    assert done.returncode == JobError.exit_code
    return done.stderr


# -- message by message -----------------------------------------------------------------------------------------------


class Lone:
    """An agent on a hub, and the messages that it publishes."""

    def __init__(self, root: Path, sensors: Sensors, rules: EligibilityRules | None = None) -> None:
        self.config = read_edge_config(write_edge(root, "pi", 1, 0))
        self.hub, self.store = Hub(), Store(Path(self.config.state_dir))
        self.watcher = self.hub.join()
        self.watcher.subscribe("covey/v1/default/pi/#")
        self.agent = Agent(self.config, self.store, self.hub.join(), "boot", machine=Machine(sensors.gate(rules)))

    def turn(self) -> list[Any]:
        """Let the agent handle one message; return what it published."""
        self.agent.serve_waiting()
        return said(self.watcher)


def said(watcher: InProcessTransport) -> list[Any]:
    kinds = Birth | DeviceState | ProfileMessage | DeviceReport
    messages = [event for event in iter(lambda: watcher.receive(0), None) if isinstance(event, Message)]
    return [
        decode_message(message.payload, kinds)  # type: ignore[arg-type]
        for message in messages
        if not message.topic.endswith("/plan")
    ]


def test_a_plan_that_comes_nevertheless_is_declined_and_a_change_is_announced_once(tmp_path: Path) -> None:
    sensors = Sensors(battery=0.9)
    lone = Lone(tmp_path / "pi", sensors, EligibilityRules(least_battery=0.5))
    states = [message for message in lone.turn() if isinstance(message, DeviceState)]
    assert [(state.state, state.ineligible) for state in states] == [("online", None)]
    assert lone.turn() == []
    sensors.now = Conditions(battery=0.3)
    plan = TrainPlan(
        job="job",
        job_seed=0,
        round=0,
        attempt=0,
        bundle_sha256="ab" * 32,
        adapter=AdapterRef(BlobRef("ab" * 32, 4), None, None),
        rule=StepRule(),
        split=1,
        steps=1,
        batch_size=1,
        mean_square=None,
        privacy=None,
        deadline_s=9.0,
        blob_url="http://127.0.0.1:1/blobs",
    )
    lone.hub.publish(topic_for("default", "pi", "plan"), encode_message(plan), retain=False)
    answers = lone.turn()
    refusals = [message for message in answers if isinstance(message, PlanRefused)]
    assert [refusal.code for refusal in refusals] == [ConfigError.exit_code]
    assert "0.3 of the battery's charge, below" in refusals[0].message
    # The server knows before it could ask again.
    assert all(message.ineligible for message in answers[: answers.index(refusals[0])])
    assert answers.index(refusals[0]) > 0
    assert (answers[-1].state, answers[-1].ineligible is None) == ("online", False)
    sensors.now = Conditions(battery=0.6)
    assert lone.turn() == [DeviceState(state="online", boot_id="boot")]
    assert lone.turn() == []


@pytest.mark.parametrize(
    ("bundle", "damaged", "sent"),
    [(None, False, True), ("same", False, True), ("cd" * 32, False, False), (None, True, False)],
)
def test_a_kept_profile_is_sent_again(
    tmp_path: Path, bundle: str | None, damaged: bool, sent: bool, caplog: pytest.LogCaptureFixture
) -> None:
    lone = Lone(tmp_path / "pi", Sensors())
    data = encode_profile(PROFILE)
    (lone.store.root / PROFILE_FILE).write_bytes(data.replace(b"0.5", b"-0.5") if damaged else data)
    if bundle is not None:
        sha256 = PROFILE.bundle.sha256 if bundle == "same" else bundle
        lone.store.write_journal(msgspec.structs.replace(lone.store.journal(), bundle_sha256=sha256))
        lone.agent = Agent(lone.config, lone.store, lone.hub.join(), "boot", machine=Machine(Sensors().gate()))
    messages = [message for message in lone.turn() if isinstance(message, ProfileMessage)]
    assert messages == ([ProfileMessage(device="pi", profile=PROFILE)] if sent else [])
    assert ("set aside" in caplog.text) == damaged


def test_an_ineligible_device_is_not_offered_work_but_spoken_to() -> None:
    from server import events
    from server.fleet.devices import ineligible

    device = Device("pi", state="online", birth=None, ineligible="hot")
    assert ineligible({"pi": device}) == {}  # it is not here
    progress = Progress("job", 20)
    assert progress.take(events.DeviceChanged(device="pi", state="online", ineligible="hot")) == (
        "pi takes no work now: hot"
    )
    waiting = events.Waiting(online=0, needed=1, ineligible={"pi": "hot"})
    assert progress.take(waiting) == "waits for devices: 0 of 1 are ready; 1 of 1: hot"


def test_a_board_that_can_never_follow_its_rules_says_so_at_once(tmp_path: Path) -> None:
    blind = EligibilityRules(on_mains=True, unknown="refuse")
    with pytest.raises(ConfigError, match="on_mains, but this board has no such sensor"):
        Lone(tmp_path / "pi", Sensors(), blind)
