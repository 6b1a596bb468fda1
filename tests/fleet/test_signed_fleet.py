"""A fleet on a broker that anybody may publish on: real agents and a real coordinator, whose transports are signed."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec
import pytest
from bench import FORWARD_ONLY, JOB, Bench, bench_of, birth_of, coordinator, sync
from signing import FLEET, Fleet, fleet_of, key_of
from tiny_models import reviews, write_rows

from edge_runtime.agent.agent import Agent
from edge_runtime.agent.announcer import lost_will
from edge_runtime.data.examples import DataConfig
from edge_runtime.network.in_process import Hub, InProcessTransport
from edge_runtime.network.transport import Message
from edge_runtime.protocol.messages import decode_message, encode_message
from edge_runtime.protocol.presence import DeviceState, Hello
from edge_runtime.protocol.reports import PlanRefused, ReportAck, Synced
from edge_runtime.protocol.side_messages import LogRequest
from edge_runtime.protocol.signed import SERVER
from edge_runtime.protocol.topics import hello_topic, topic_for
from edge_runtime.signing.signer import Signer
from edge_runtime.signing.transport import HELLO_AGAIN_S, SignedTransport, signed_will
from edge_runtime.signing.verifier import Reason
from edge_runtime.store.store import Store

if TYPE_CHECKING:
    from edge_runtime.bundle.folder import Bundle

JOB_OF_TWO = msgspec.structs.replace(JOB, rounds=3, min_devices=2, min_reports=2)
NAMES = ("pi", "zero")


@pytest.fixture
def bench(tmp_path: Path, tiny_bundle: Bundle) -> Iterator[Bench]:
    with bench_of(tmp_path, tiny_bundle) as made:
        yield made


class ServersHub:
    """A hub whose members are the server, with signatures: what bench.coordinator connects to."""

    def __init__(self, hub: Hub, fleet: Fleet, session: str, clock: Callable[[], float]) -> None:
        self._hub, self._fleet, self._session, self._clock = hub, fleet, session, clock
        self.transports: list[SignedTransport] = []
        self.inner: list[InProcessTransport] = []

    def join(self) -> SignedTransport:
        self.inner.append(self._hub.join())
        made = self._fleet.transport(self.inner[-1], SERVER, self._session, clock=self._clock)
        self.transports.append(made)
        return made


class SignedFleet:
    """A bench's hub with signed agents; the server is signed while ``serving``."""

    def __init__(self, bench: Bench, names: tuple[str, ...] = NAMES) -> None:
        self.bench, self.hub, self.fleet = bench, bench.hub, fleet_of(*names)
        self.agents: dict[str, Agent] = {}
        self.transports: dict[str, SignedTransport] = {}
        self.inner: dict[str, InProcessTransport] = {}
        for name in names:
            self.start(name, "boot-1")

    def start(self, name: str, boot: str) -> None:
        root = self.bench.root / name
        root.mkdir(exist_ok=True)
        write_rows(reviews(12, 3 + NAMES.index(name)), root / "data.jsonl")
        config = msgspec.structs.replace(
            self.bench.config, name=name, data=DataConfig(str(root / "data.jsonl")), state_dir=str(root / "state")
        )
        signer = self.fleet.signer(name, boot)
        inner = self.inner[name] = self.hub.join(signed_will(lost_will(config, boot), signer))
        verifier = self.fleet.verifier(name, boot, root)
        transport = self.transports[name] = SignedTransport(inner, signer, verifier)
        self.agents[name] = Agent(config, Store(root / "state"), transport, boot)

    def turn(self) -> None:
        for agent in self.agents.values():
            agent.serve_waiting()

    def serving(self, session: str, clock: Callable[[], float] = time.monotonic) -> ServersHub:
        """Make the bench's coordinator a signed one."""
        made = ServersHub(self.hub, self.fleet, session, clock)
        self.bench.hub = cast("Hub", made)
        return made


def run_fleet(signed: SignedFleet, job: Any, each_turn: Callable[[], None] = lambda: None) -> tuple[str, Any, Any]:
    """Run a job; return the final adapter's hash, what the server refused, and its devices."""
    servers = signed.serving("server-1")
    stop_at = time.monotonic() + 60

    def turn() -> bool:
        each_turn()
        signed.turn()
        return time.monotonic() > stop_at

    with coordinator(signed.bench, job) as (made, _):
        assert made.run(turn)
        return made.job_run.chain.sha256, servers.transports[0].refused, set(made.devices)


class Attacker:
    """Reads all topics, and publishes on all of them: as it pleases, with a key that the fleet knows as another's."""

    def __init__(self, hub: Hub, seed: int) -> None:
        self.hub, self.rng = hub, random.Random(seed)
        self.ear = hub.join()
        self.ear.subscribe("covey/#")
        self.heard: list[Message] = []
        self.mine: set[bytes] = set()
        # It has joined the fleet as the device "mole", and knows the numbers of the others.
        self.signers = [
            Signer(name, FLEET, session, key_of("mole"), lambda: 2**62 + self.rng.randrange(2**60))
            for name in (*NAMES, SERVER)
            for session in ("boot-1", "server-1")
        ]

    def publish(self, topic: str, payload: bytes) -> None:
        self.mine.add(payload)
        self.hub.publish(topic, payload, retain=self.rng.random() < 0.3)

    def turn(self) -> None:
        while (event := self.ear.receive(0)) is not None:
            if isinstance(event, Message) and event.payload not in self.mine:
                self.heard.append(event)
        for _ in range(12):
            self.rng.choice([self.replay, self.alter, self.move, self.forge, self.unsigned])()

    def old(self) -> Message | None:
        """Return a message that is not the last of its topic: the last one may be said again (QoS 1)."""
        last = {message.topic: message for message in self.heard}
        older = [message for message in self.heard if last[message.topic] is not message]
        return self.rng.choice(older) if older else None

    def replay(self) -> None:
        message = self.old() if self.rng.random() < 0.7 else self.rng.choice(self.heard or [None])  # type: ignore[list-item]
        if message is not None:
            self.publish(message.topic, message.payload)

    def alter(self) -> None:
        if self.heard:
            message = self.rng.choice(self.heard[-4:])
            changed = bytearray(message.payload)
            changed[self.rng.randrange(len(changed))] ^= 1 << self.rng.randrange(8)
            self.publish(message.topic, bytes(changed))

    def move(self) -> None:
        if self.heard:
            message = self.rng.choice(self.heard[-4:])
            other = self.rng.choice(["pi", "zero", "mole"])
            kind = self.rng.choice(["birth", "state", "report", "plan", "report/ack"])
            if topic_for(FLEET, other, kind) != message.topic:  # type: ignore[arg-type]
                self.publish(topic_for(FLEET, other, kind), message.payload)  # type: ignore[arg-type]

    def messages(self) -> tuple[str, bytes]:
        """Return a message that would do harm if it were believed."""
        name = self.rng.choice(NAMES)
        kind, message = self.rng.choice(
            [
                ("state", DeviceState(state="lost", boot_id="boot-1")),
                ("birth", birth_of("ghost", FORWARD_ONLY, rows=5)),
                ("report", PlanRefused(job="job", round=0, attempt=0, device=name, code=3, message="no")),
                ("report", Synced(job="job", round=9, device=name, adapter_sha256="0" * 64, blob_bytes=0)),
                ("report/ack", ReportAck(job="job", round=0, attempt=0, outcome="taken")),
                ("log/get", LogRequest(lines=200, follow_s=600.0)),
            ]
        )
        if self.rng.random() < 0.2:
            return hello_topic(FLEET), encode_message(Hello(epoch="evil", covey_version="0"))
        return topic_for(FLEET, name, kind), encode_message(message)  # type: ignore[arg-type]

    def forge(self) -> None:
        topic, body = self.messages()
        self.publish(topic, self.rng.choice(self.signers).seal(topic, body, self.rng.choice(["boot-1", "server-1"])))

    def unsigned(self) -> None:
        self.publish(*self.messages())


@pytest.mark.parametrize("seed", [1, 2])
def test_attackers_change_nothing_of_a_job(bench: Bench, seed: int, tmp_path: Path) -> None:
    undisturbed = SignedFleet(bench)
    expected, refused, _ = run_fleet(undisturbed, JOB_OF_TWO)
    assert not {reason for _, reason in refused} - {Reason.STALE, Reason.DUPLICATE}
    with bench_of(tmp_path / "attacked", bench.bundle) as again:
        attacked = SignedFleet(again)
        attacked.fleet.book.add("mole", key_of("mole").public_key())
        attacker = Attacker(again.hub, seed)
        got, refused, devices = run_fleet(attacked, JOB_OF_TWO, attacker.turn)
    assert got == expected
    assert devices == set(NAMES)
    by_reason = {reason for _, reason in refused}
    assert {Reason.FOREIGN, Reason.ALTERED, Reason.UNSIGNED, Reason.REPLAYED} <= by_reason
    on_devices = {reason for transport in attacked.transports.values() for _, reason in transport.refused}
    assert {Reason.FOREIGN, Reason.UNSIGNED} <= on_devices


def test_without_signatures_the_same_attacker_does_harm(bench: Bench) -> None:
    """The attacks of the test above are real ones: unsigned members believe them."""
    attacker = Attacker(bench.hub, 1)
    with coordinator(bench, JOB_OF_TWO) as (made, _):
        while made.coordinator.handle_next(0):
            pass
        for _ in range(40):
            attacker.unsigned()
        while made.coordinator.handle_next(0):
            pass
        assert "pi" in made.devices


def test_a_report_sent_again_in_order_is_taken_once_and_late_copies_are_counted(bench: Bench) -> None:
    """QoS 1 repeats messages: the hub delivers each report three times."""
    signed = SignedFleet(bench, ("pi",))
    heard = signed.hub.join()
    heard.subscribe("covey/#")
    seen: set[bytes] = set()

    def repeat() -> None:
        while (event := heard.receive(0)) is not None:
            if isinstance(event, Message) and event.payload not in seen:
                seen.add(event.payload)
                for _ in range(2):
                    signed.hub.publish(event.topic, event.payload, retain=False)

    job = msgspec.structs.replace(JOB, rounds=2)
    got, refused, _ = run_fleet(signed, job, repeat)
    with bench_of(bench.root / "once", bench.bundle) as again:
        once, _, _ = run_fleet(SignedFleet(again, ("pi",)), job)
    assert got == once
    assert refused[("pi", Reason.DUPLICATE)] > 0
    assert Reason.REORDERED not in {reason for _, reason in refused}


def test_server_and_device_restart_in_the_middle_of_a_job(bench: Bench) -> None:
    signed = SignedFleet(bench, ("pi",))
    job = msgspec.structs.replace(JOB, rounds=3)
    stop_at = time.monotonic() + 60

    def turn_until(is_done: Callable[[], bool]) -> Callable[[], bool]:
        def turn() -> bool:
            signed.turn()
            return is_done() or time.monotonic() > stop_at

        return turn

    signed.serving("server-1")
    with coordinator(bench, job) as (made, _):
        assert not made.run(turn_until(lambda: len(made.job_run.chain.closed) >= 1))
    signed.inner["pi"].vanish()
    signed.start("pi", "boot-2")
    servers = signed.serving("server-2")
    with coordinator(bench, job) as (made, _):
        assert made.run(turn_until(lambda: False))
        assert len(made.job_run.chain.closed) == 3
        assert made.devices["pi"].is_here
    assert set(servers.transports[0].refused) <= {("pi", Reason.STALE), ("pi", Reason.DUPLICATE)}
    assert set(signed.transports["pi"].refused) <= {(SERVER, Reason.STALE), (SERVER, Reason.DUPLICATE)}


def test_a_device_that_vanishes_is_lost_and_comes_back(bench: Bench) -> None:
    signed = SignedFleet(bench, ("pi",))
    servers = signed.serving("server-1")
    with coordinator(bench, JOB_OF_TWO) as (made, _):

        def settle() -> None:
            for _ in range(8):
                signed.turn()
                while made.coordinator.handle_next(0):
                    pass

        settle()
        assert made.devices["pi"].is_here
        for boot in ("boot-2", "boot-3"):
            will = signed.inner["pi"]._will
            signed.inner["pi"].vanish()
            signed.agents.clear()
            settle()
            assert not made.devices["pi"].is_here
            signed.start("pi", boot)
            settle()
            assert made.devices["pi"].is_here
            assert will is not None
            signed.hub.publish(will.topic, will.payload, retain=True)  # recorded, and sent by somebody else
            settle()
            assert made.devices["pi"].is_here
        assert servers.transports[0].refused[("pi", Reason.REPLAYED)] == 2


def test_a_device_that_missed_the_hello_hears_it_again(bench: Bench) -> None:
    """Some brokers send what they retain only into new sessions: the hello is said again, and not for ever."""
    now = 100.0
    signed = SignedFleet(bench, ())
    servers = signed.serving("server-1", lambda: now)
    with coordinator(bench, JOB) as (made, _):
        assert made.coordinator.handle_next(0)  # its connection: it says hello
        signed.hub._retained.clear()
        signed.fleet.book.add("pi", key_of("pi").public_key())
        signed.start("pi", "boot-1")

        def settle() -> None:
            for _ in range(4):
                signed.turn()
                while made.coordinator.handle_next(0):
                    pass

        settle()
        assert "pi" not in made.devices
        assert servers.transports[0].refused[("pi", Reason.STALE)] >= 1
        published = signed.hub.published
        settle()
        assert signed.hub.published == published  # not before its time
        now += HELLO_AGAIN_S
        settle()
        assert made.devices["pi"].is_here
        published = signed.hub.published
        now += 10 * HELLO_AGAIN_S
        settle()
        assert signed.hub.published == published


def test_an_agent_takes_over_an_adapter_from_its_own_server_only(bench: Bench) -> None:
    signed = SignedFleet(bench, ("pi",))
    server = signed.fleet.transport(signed.hub.join(), SERVER, "server-1")
    server.subscribe(topic_for(FLEET, "pi", "birth"))
    server.subscribe(topic_for(FLEET, "pi", "report"))
    hello = encode_message(Hello(epoch="epoch", covey_version="0"))
    server.publish(hello_topic(FLEET), hello, retain=True)
    plan, topic = encode_message(sync(bench, bench.initial())), topic_for(FLEET, "pi", "plan")
    for _ in range(4):
        signed.turn()
    while server.receive(0) is not None:
        pass
    bare = signed.hub.join()
    bare.publish(topic, plan)
    mole = Signer(SERVER, FLEET, "server-1", key_of("mole"), lambda: 2**40)
    bare.publish(topic, mole.seal(topic, plan, "boot-1"))
    for _ in range(4):
        signed.turn()
    assert server.receive(0) is None
    server.publish(topic, plan)
    for _ in range(4):
        signed.turn()
    reports = []
    while (event := server.receive(0)) is not None:
        if isinstance(event, Message) and event.topic.endswith("/report"):
            reports.append(decode_message(event.payload, Synced))
    assert [report.adapter_sha256 for report in reports] == [bench.initial().file.sha256]
    assert signed.transports["pi"].refused == {(SERVER, Reason.UNSIGNED): 1, (SERVER, Reason.FOREIGN): 1}
