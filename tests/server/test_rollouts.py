"""The state machine of rollouts: its rules over arbitrary orders of events, its groups, and what the ledger keeps."""

from __future__ import annotations

import contextlib
from contextlib import closing
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from bench import FORWARD_ONLY, birth_of
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from edge_runtime.errors import ConfigError, StorageError
from edge_runtime.network.in_process import Hub
from edge_runtime.protocol.messages import decode_message
from edge_runtime.protocol.side_messages import Release, Released
from server.errors import RolloutError
from server.fleet.devices import Device
from server.queue.rollout_wish import seconds, share
from server.rollouts import rollout as machine
from server.rollouts.groups import groups_of
from server.rollouts.rollout import Rollout
from server.rollouts.rollouts import Rollouts
from server.storage.blobs import BlobStore
from server.storage.ledger import Ledger
from server.storage.ledger_address import LEDGER_FILE

if TYPE_CHECKING:
    from pathlib import Path

SHA = "ab" * 32
NAMES = [f"pi-{index}" for index in range(7)]
SOAK_S = 10.0


def new(groups: list[list[str]], **changes: Any) -> Rollout:
    fields: dict[str, Any] = {
        "kind": "adapter",
        "sha256": SHA,
        "size_bytes": 4,
        "path": "/gone",
        "groups": groups,
        "takes_everyone": True,
        "error_threshold": 0.34,
        "soak_s": SOAK_S,
        "approve": False,
        "state": "running",
        "devices": {},
    }
    return machine.begin(Rollout(**(fields | changes)))


def over(rollout: Rollout, group: list[str]) -> bool:
    return sum(rollout.devices[name].state == "failed" for name in group) > rollout.error_threshold * len(group)


class Rolling(RuleBasedStateMachine):
    """Devices come, go, switch, fail and lie; the operator intervenes; the server restarts. The clock never waits."""

    @initialize(approve=st.booleans(), sizes=st.sampled_from([["1", "3", "100%"], ["2", "50%"], ["100%"]]))
    def begin(self, approve: bool, sizes: list[str]) -> None:
        self.rollout = new(groups_of(NAMES, sizes, SHA), approve=approve)
        self.here: set[str] = set()
        self.has = dict.fromkeys(NAMES, "old")  # what is really in use on each device
        self.now_s = 1000.0

    def becomes(self, after: Rollout) -> None:
        before, self.rollout = self.rollout, after
        begun = before.groups_begun
        if after.groups_begun > begun and after.state in ("running", "soaking", "finished"):
            for group in before.groups[:begun]:  # a group begins once those before have succeeded
                assert not over(before, group)
                assert not any(before.devices[name].state in ("offered", "fetching") for name in group)
            assert begun == 0 or any(before.devices[n].state == "switched" for n in before.groups[begun - 1])

    @rule(name=st.sampled_from([*NAMES, "late"]))
    def comes(self, name: str) -> None:
        self.has.setdefault(name, "old")
        self.here.add(name)

    @rule(name=st.sampled_from(NAMES))
    def goes(self, name: str) -> None:
        self.here.discard(name)

    @rule(passes_s=st.sampled_from([0.0, 3.0, SOAK_S]))
    def look(self, passes_s: float) -> None:
        self.now_s += passes_s
        while (after := machine.step(self.rollout, self.here, self.now_s)) != self.rollout:
            self.becomes(after)

    @rule(name=st.sampled_from(NAMES), works=st.sampled_from([True, True, True, False]))
    def does_what_it_is_asked(self, name: str, works: bool) -> None:
        order = machine.wanted(self.rollout, name)
        if name not in self.here or order is None:
            return
        if order == "back":
            self.has[name] = "old"
            outcome: machine.Outcome = "rolled-back"
        else:
            self.has[name] = "new" if works else self.has[name]
            outcome = "switched" if works else "failed"
        self.becomes(machine.took(self.rollout, name, outcome, "why"))

    @rule(name=st.sampled_from([*NAMES, "nobody"]))
    def says_that_it_fetches(self, name: str) -> None:
        self.becomes(machine.took(self.rollout, name, "fetching", ""))

    @rule(change=st.sampled_from([machine.pause, machine.resume, lambda r: machine.abort(r, "word")]))
    def operator(self, change: Any) -> None:
        with contextlib.suppress(RolloutError):
            self.becomes(change(self.rollout))

    @rule()
    def server_restarts(self) -> None:
        kept = msgspec.json.decode(msgspec.json.encode(self.rollout), type=Rollout)
        assert kept == self.rollout
        self.rollout, self.here = kept, set()

    @invariant()
    def over_the_threshold_nothing_goes_on(self) -> None:
        looked = machine.step(self.rollout, self.here, self.now_s)
        if self.rollout.state != "finished" and any(over(looked, g) for g in looked.groups[: looked.groups_begun]):
            assert looked.state in ("rolling-back", "halted", "aborted")
            assert not any(machine.wanted(looked, name) == "switch" for name in looked.devices)

    @invariant()
    def whoever_was_not_asked_has_what_it_had(self) -> None:
        for name, entry in self.rollout.devices.items():
            assert entry.state not in ("pending", "failed", "rolled-back") or self.has[name] == "old"

    def teardown(self) -> None:
        """An abort ends with every device that can be reached on the version before, in whatever state it was."""
        if not hasattr(self, "rollout"):
            return
        with contextlib.suppress(RolloutError):
            self.rollout = machine.abort(self.rollout, "the end")
        self.here = set(self.has)
        for name in sorted(self.has):
            self.does_what_it_is_asked(name, works=True)
        self.look(0.0)
        assert self.rollout.state in ("halted", "aborted")
        assert set(self.has.values()) == {"old"}


TestRolling = Rolling.TestCase
TestRolling.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


@given(
    st.sets(st.integers(0, 400), min_size=1, max_size=60),
    st.lists(st.sampled_from(["1", "2", "7", "5%", "12.5%", "25%", "100%"]), min_size=1, max_size=6),
)
def test_groups_share_no_device_and_depend_on_nothing_but_names_and_release(
    numbers: set[int], sizes: list[str]
) -> None:
    names = [f"pi-{number}" for number in numbers]
    groups = groups_of(names, sizes, SHA)
    assert groups == groups_of(list(reversed(names)), sizes, SHA)
    flat = [name for group in groups for name in group]
    assert len(flat) == len(set(flat))
    assert set(flat) <= set(names)
    assert all(groups)
    assert "100%" not in sizes or set(flat) == set(names)


def test_the_groups_of_the_issue() -> None:
    groups = groups_of([f"pi-{n}" for n in range(100)], ["1", "5%", "25%", "100%"], SHA)
    assert [len(group) for group in groups] == [1, 4, 20, 75]


@pytest.mark.parametrize("sizes", [[], ["0"], ["-1"], ["101%"], ["1.5"], ["x"], ["5 %"], ["nan"], ["1"] * 51])
def test_sizes_that_are_none_are_refused(sizes: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"size of a group|groups are not between"):
        groups_of(["pi"], sizes, SHA)


def test_a_soak_is_waited_for_and_shares_and_times_are_read() -> None:
    rollout = machine.step(new([["a"], ["b"]]), {"a", "b"}, 100.0)
    assert [machine.wanted(rollout, name) for name in "ab"] == ["switch", None]
    rollout = machine.step(machine.took(rollout, "a", "switched", ""), {"a", "b"}, 100.0)
    assert (rollout.state, rollout.soaks_until_s) == ("soaking", 110.0)
    assert machine.step(rollout, {"a", "b"}, 109.9) == rollout
    assert machine.wanted(machine.step(rollout, {"a", "b"}, 110.0), "b") == "switch"
    assert [seconds("90"), seconds("30m"), seconds("1.5h"), seconds("2d")] == [90.0, 1800.0, 5400.0, 172800.0]
    assert [share("5%"), share("0.25")] == [0.05, 0.25]
    for wrong in ("1w", "", "-1s"):
        with pytest.raises(ConfigError, match="is no time"):
            seconds(wrong)
    with pytest.raises(ConfigError, match="is no share"):
        share("many")


def test_a_device_that_vanishes_holds_its_group_until_it_is_forgotten() -> None:
    rollout = machine.step(new([["a", "b"], ["c"]], soak_s=0.0), {"a", "b", "c"}, 0.0)
    rollout = machine.took(rollout, "a", "switched", "")
    held = machine.step(rollout, {"a", "c"}, 1e6)
    assert (held.state, held.group) == ("running", 0)
    assert machine.step(machine.forget(held, {"a", "c"}), {"a", "c"}, 1e6).group == 1


# -- carried out, with a ledger ----------------------------------------------------------------------------------


class Server:
    """Rollouts over a real ledger and an in-process broker, with devices that are simply here."""

    def __init__(self, root: Path) -> None:
        self.root, self.now_s, self.hub = root, 1000.0, Hub()
        self.path = root / f"{SHA}.bin"
        self.path.write_bytes(b"1234")
        self.devices = {name: Device(name, state="online", birth=_birth(name)) for name in ("a", "b", "c")}
        self.listener = self.hub.join()
        self.listener.subscribe("covey/v1/default/+/release")
        self.start()

    def start(self) -> None:
        self.ledger = Ledger(self.root / LEDGER_FILE)
        transport, blobs = self.hub.join(), BlobStore(self.root / "blobs")
        self.rollouts = Rollouts(
            "default", self.ledger, blobs, transport, "http://:1/blobs", self.devices, lambda: self.now_s
        )
        self.blobs = blobs

    def restart(self) -> None:
        self.ledger.close()
        self.start()

    def asked(self) -> list[tuple[str, int, str]]:
        self.rollouts.turn()
        found = []
        while (event := self.listener.receive(0)) is not None:
            if hasattr(event, "payload"):
                release = decode_message(event.payload, Release)
                found.append((event.topic.split("/")[3], release.rollout, release.step))
        return found

    def answers(self, name: str, outcome: Any, number: int = 1, reason: str = "") -> None:
        said = Released(rollout=number, device=name, kind="adapter", outcome=outcome, code=0, reason=reason)
        self.rollouts.take(name, said)


def _birth(name: str) -> Any:
    return birth_of(name, FORWARD_ONLY)


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path)


def test_a_rollout_goes_on_after_restarts_at_every_step(server: Server) -> None:
    offer = new([["a"], ["b", "c"]], path=str(server.path), error_threshold=0.0)
    assert server.rollouts.start(offer) == 1
    assert server.asked() == [("a", 1, "switch")]
    assert server.asked() == []  # once
    server.restart()
    assert server.asked() == [("a", 1, "switch")]  # it owes its answer
    assert server.blobs.path(SHA) == server.path
    server.answers("a", "switched")
    server.restart()
    assert server.asked() == []
    server.now_s += SOAK_S - 1
    server.restart()
    assert server.asked() == []
    server.now_s += 1
    assert server.asked() == [("b", 1, "switch"), ("c", 1, "switch")]
    server.answers("b", "switched")
    server.answers("c", "failed", reason="worse")
    server.restart()
    assert server.asked() == [("a", 1, "back"), ("b", 1, "back")]
    server.answers("a", "rolled-back")
    server.restart()
    server.answers("b", "rolled-back")
    assert server.asked() == []
    rollout = server.rollouts.rollout(1)
    assert (rollout.state, rollout.reason) == ("halted", "group 2: 1 of 2 devices failed; c: worse")


def test_a_device_that_was_away_goes_back_when_it_comes(server: Server) -> None:
    server.rollouts.start(new([["a", "b", "c"]], path=str(server.path)))
    server.asked()
    server.answers("a", "switched")
    server.devices["a"].state = "lost"
    assert server.rollouts.change(1, lambda rollout: machine.abort(rollout, "word")) == "rolling-back"
    assert server.asked() == [("b", 1, "back"), ("c", 1, "back")]
    server.answers("b", "rolled-back")
    server.answers("c", "rolled-back")
    server.asked()
    assert server.rollouts.rollout(1).state == "aborted"
    server.devices["a"].state = "online"
    server.restart()
    assert server.asked() == [("a", 1, "back")]


def test_one_rollout_at_a_time_and_none_of_another_version(server: Server) -> None:
    server.rollouts.start(new([["a"]], path=str(server.path)))
    with pytest.raises(RolloutError, match="rollout 1 is running"):
        server.rollouts.start(new([["b"]], path=str(server.path)))
    with pytest.raises(RolloutError, match="there is no rollout 9"):
        server.rollouts.change(9, machine.pause)
    server.ledger.rollout_changed(1, "running", '{"kind": "adapter"}', has_ended=False)
    with (
        closing(server.ledger),
        pytest.raises(StorageError, match="written by another version of Covey, or is damaged"),
    ):
        server.start()
