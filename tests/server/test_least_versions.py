"""The server offers nothing to a device whose libraries are older than the bundle needs, and says why."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from bench import FORWARD_ONLY, JOB, Bench, ScriptedDevice, bench_of, birth_of, good_report

from edge_runtime.agent.birth import METHODS
from edge_runtime.bundle.base import Base
from edge_runtime.bundle.folder import Bundle
from edge_runtime.bundle.manifest import Manifest
from edge_runtime.bundle.needs import Needs
from edge_runtime.network.transport import Message
from edge_runtime.protocol.messages import decode_message, decode_plan_or_refusal, encode_message
from edge_runtime.protocol.plans import SyncPlan, TrainPlan
from edge_runtime.protocol.presence import FROZEN_FRONT, DeviceState, Hello
from edge_runtime.protocol.reports import PlanAccepted
from edge_runtime.protocol.side_messages import TooOld
from edge_runtime.protocol.step_rule import StepRule
from edge_runtime.protocol.topics import hello_topic
from server import events
from server.compose import Stores, compose
from server.evaluation import BackgroundEvaluator, Evaluation
from server.job.fitted import FittedJob, fit_to_bundle
from server.rounds.least_versions import why_too_old
from server.rounds.services import Services
from server.storage import device_queries
from server.storage.ledger import Ledger
from server.storage.ledger_address import LEDGER_FILE
from server.views.registry import device_list

NEEDS = Needs({"onnxruntime": "1.18", "executorch": "1.5.1"}, "0.21.2", 10, {"ai.onnx": 20})
NEW = {"onnxruntime": "1.23.0", "numpy": "2.0", "tokenizers": "0.22.0"}
OLD_RUNTIME = {**NEW, "onnxruntime": "1.17.3"}
OLD_TOKENIZERS = {**NEW, "tokenizers": "0.20.0"}


class Versioned(ScriptedDevice):
    """A scripted device with the versions of a board; it notes each plan and each word that there is none."""

    def __init__(self, bench: Bench, name: str, runtimes: dict[str, str]) -> None:
        super().__init__(bench, name, self._train)
        self.birth = msgspec.structs.replace(self.birth, runtimes=runtimes)
        self.plans: list[Any] = []
        self.told: list[TooOld] = []

    def update(self, runtimes: dict[str, str]) -> None:
        """Start again with other versions."""
        self.birth = msgspec.structs.replace(self.birth, runtimes=runtimes, boot_id="2")
        self.send("birth", msgspec.structs.replace(self.birth, epoch=self.epoch), retain=True)
        self.send("state", DeviceState(state="online", boot_id="2", epoch=self.epoch), retain=True)

    def turn(self) -> None:
        """Answer what has arrived."""
        while (event := self.transport.receive(0)) is not None:
            if not isinstance(event, Message):
                continue
            if event.topic == hello_topic("default"):
                self.announce(decode_message(event.payload, Hello).epoch)
            elif event.topic.endswith("/plan"):
                self._take(decode_plan_or_refusal(event.payload))

    def _take(self, plan: Any) -> None:
        if isinstance(plan, TooOld):
            self.told.append(plan)
            return
        self.plans.append(plan)
        for message in self._train(plan) if isinstance(plan, TrainPlan) else [self.synced(plan)]:
            self.send("report", message)

    def _train(self, plan: TrainPlan) -> list[Any]:
        accepted = PlanAccepted(job=plan.job, round=plan.round, attempt=plan.attempt, device=self.name)
        return [accepted, good_report(plan, self.name)]


@pytest.fixture
def bench(tmp_path: Path, tiny_bundle: Bundle) -> Iterator[Bench]:
    with bench_of(tmp_path, tiny_bundle) as made:
        yield made


class Served:
    """A job that needs NEEDS, its ledger, and its events."""

    def __init__(self, bench: Bench, ledger: Ledger, needs: Needs | None = NEEDS, **changes: Any) -> None:
        self.seen: list[events.Event] = []
        self.ledger = ledger
        manifest = msgspec.structs.replace(bench.bundle.manifest, needs=needs)
        self.fitted: FittedJob = fit_to_bundle(msgspec.structs.replace(JOB, **changes), manifest, bench.bundle.sha256)
        evaluator = BackgroundEvaluator(lambda _theta: Evaluation(0.5, 0.5))
        services = Services(bench.hub.join(), bench.uploads, evaluator, lambda: 0.0, bench.url)
        stores = Stores(ledger, bench.blobs, bench.uploads)
        self.made = compose("default", self.fitted, bench.bundle, stores, lambda: services, self.seen.append)

    def run(self, devices: list[Versioned], until: Any = lambda: False) -> bool:
        """Run until the job is finished, or ``until``, or 2000 turns."""
        turns = iter(range(2000))

        def turn() -> bool:
            for device in devices:
                device.turn()
            return until() or next(turns, None) is None

        return bool(self.made.run(turn))

    def listed(self, name: str) -> dict[str, Any]:
        return next(found for found in device_list(self.ledger) if found["device"] == name)


@pytest.fixture
def ledger(bench: Bench) -> Iterator[Ledger]:
    made = Ledger(bench.root / LEDGER_FILE)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("runtimes", "package"), [(OLD_RUNTIME, "onnxruntime 1.17.3"), (OLD_TOKENIZERS, "tokenizers 0.20.0")]
)
def test_a_device_that_is_too_old_is_told_and_stops_nobody(
    bench: Bench, ledger: Ledger, runtimes: dict[str, str], package: str
) -> None:
    old, new = Versioned(bench, "old", runtimes), Versioned(bench, "new", NEW)
    served = Served(bench, ledger)
    assert served.run([old, new])
    assert len([plan for plan in new.plans if isinstance(plan, TrainPlan)]) == 2
    assert old.plans == []  # the final adapter neither
    (told,) = old.told
    assert told.bundle_sha256 == bench.bundle.sha256
    assert package in told.reason
    assert "pip install" in told.reason
    assert served.listed("old")["reason"] == told.reason
    assert served.listed("new")["reason"] is None
    changes = [event for event in served.seen if isinstance(event, events.DeviceChanged) and event.device == "old"]
    assert changes[-1].ineligible == told.reason


def test_an_updated_device_gets_work_at_its_next_birth(bench: Bench, ledger: Ledger) -> None:
    device = Versioned(bench, "pi", OLD_RUNTIME)
    served = Served(bench, ledger)

    def update_once_it_is_told() -> bool:
        waiting = [event for event in served.seen if isinstance(event, events.Waiting) and event.ineligible]
        if device.told and waiting and device.birth.boot_id == "1":
            assert waiting[-1].online == 0
            assert "1.17.3" in waiting[-1].ineligible["pi"]
            assert device.plans == []
            device.update(NEW)
        return False

    assert served.run([device], until=update_once_it_is_told)
    assert [plan.round for plan in device.plans] == [0, 1, 2]
    assert served.listed("pi")["reason"] is None


def test_it_is_told_again_with_each_announcement_and_not_between(bench: Bench, ledger: Ledger) -> None:
    device = Versioned(bench, "pi", OLD_RUNTIME)
    served = Served(bench, ledger)
    turns = iter(range(20))

    def update_after_many_turns() -> bool:
        turn = next(turns, None)
        if turn == 10:
            assert len(device.told) == 1
            device.update(OLD_TOKENIZERS)
        return turn is None

    served.run([device], until=update_after_many_turns)
    assert [package in told.reason for package, told in zip(("onnxruntime", "tokenizers"), device.told, strict=True)]
    assert "tokenizers" in served.listed("pi")["reason"]


def test_a_restarted_server_forgets_what_has_been_mended_meanwhile(bench: Bench, ledger: Ledger) -> None:
    device = Versioned(bench, "pi", OLD_RUNTIME)
    Served(bench, ledger).run([device], until=lambda: bool(device.told))
    assert next(iter(device_queries.devices_of(ledger))).reason is not None
    device.birth = msgspec.structs.replace(device.birth, runtimes=NEW)
    again = Served(bench, ledger, name="again")
    again.run([device], until=lambda: bool(device.plans))
    assert again.listed("pi")["reason"] is None


@pytest.mark.parametrize("runtimes", [{}, {"numpy": "2.0"}, {"onnxruntime": "nightly", "tokenizers": "?"}, NEW])
def test_unknown_versions_and_old_manifests_keep_nobody_from_work(
    tiny_bundle: Bundle, runtimes: dict[str, str]
) -> None:
    birth = msgspec.structs.replace(_birth(), runtimes=runtimes)
    assert why_too_old(_with(tiny_bundle.manifest, NEEDS), birth, StepRule()) is None
    old = msgspec.structs.replace(birth, runtimes=OLD_RUNTIME)
    assert why_too_old(_with(tiny_bundle.manifest, None), old, StepRule()) is None


def test_the_runtime_that_a_device_uses_is_judged() -> None:
    class _Needing:
        needs = NEEDS
        levels = ()
        base = None

    manifest: Any = _Needing()
    executorch = {"executorch": "1.4.0", "numpy": "2", "tokenizers": "0.22.0"}
    found = why_too_old(manifest, msgspec.structs.replace(_birth(), runtimes=executorch), StepRule())
    assert found is not None
    assert "executorch 1.4.0" in found
    gpu = {"onnxruntime-gpu": "1.17.0", "numpy": "2", "tokenizers": "0.22.0"}
    found = why_too_old(manifest, msgspec.structs.replace(_birth(), runtimes=gpu), StepRule())
    assert found is not None
    assert "onnxruntime-gpu>=1.18" in found


def test_a_quantised_base_needs_a_covey_that_reads_it(tiny_bundle: Bundle) -> None:
    base = Base("int4", 32, "float32", 10, "golden", 1.0, 1.1, 0.01, 0.99, 0.01)
    manifest = msgspec.structs.replace(tiny_bundle.manifest, base=base)
    found = why_too_old(manifest, _birth(), StepRule())
    assert found is not None
    assert "covey 0 on the device cannot read a bundle whose base is quantised (int4)" in found
    assert "update covey on the device" in found
    assert why_too_old(manifest, msgspec.structs.replace(_birth(), methods=METHODS), StepRule()) is None


def _birth() -> Any:
    return birth_of("pi", FORWARD_ONLY)


def _with(manifest: Manifest, needs: Needs | None) -> Manifest:
    return msgspec.structs.replace(manifest, needs=needs)


def test_a_device_takes_the_word_and_goes_on(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    agent = bench.agent()
    told = TooOld(job="job", bundle_sha256=bench.bundle.sha256, reason="onnxruntime 1.17.3 is too old")
    bench.hub.publish(bench.topic("plan"), encode_message(told), retain=False)
    bench.hub.publish(bench.topic("plan"), encode_message(bench.train_plan(bench.initial())), retain=False)
    server = bench.hub.join()
    server.subscribe(bench.topic("report"))
    for _ in range(8):
        agent.serve_waiting()
    assert "onnxruntime 1.17.3 is too old" in caplog.text
    assert server.receive(0) is not None  # the plan after it is answered


def test_a_device_that_does_not_know_frozen_fronts_is_told_and_trains_in_other_jobs(
    bench: Bench, ledger: Ledger
) -> None:
    old, new = Versioned(bench, "old", NEW), Versioned(bench, "new", NEW)
    new.birth = msgspec.structs.replace(new.birth, methods=["spzo", FROZEN_FRONT])
    assert Served(bench, ledger, needs=None, front="frozen").run([old, new])
    plans = [plan for plan in new.plans if isinstance(plan, TrainPlan)]
    assert [plan.rule.front_is_frozen for plan in plans] == [True, True]
    assert old.plans == []
    (told,) = old.told
    assert 'front = "frozen"' in told.reason
    assert "install a newer version of Covey" in told.reason
    assert Served(bench, ledger, needs=None, name="other").run([old])
    assert [type(plan) for plan in old.plans] == [TrainPlan, TrainPlan, SyncPlan]
