"""Backprop devices: plans that they train or refuse, their personal layers, their memory."""

from __future__ import annotations

import hashlib
import platform
import re
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from bench import Bench, drain, sync
from fleets import free_port
from hybrid import (
    ack,
    answers,
    backprop_plan,
    make_agent,
)

from edge_runtime.agent.backprop_plan import check_plan
from edge_runtime.backprop.importance import LayerStatistics
from edge_runtime.backprop.layer_draw import ActiveLayers
from edge_runtime.backprop.round import BackpropSettings, Personal, mean_gradient, train_backprop
from edge_runtime.bundle import memory_need
from edge_runtime.bundle.layers import layer_slices
from edge_runtime.cli import main
from edge_runtime.data.rows import EncodedRows
from edge_runtime.device import memory
from edge_runtime.engines.bundle_training import BundleTrainingEngine
from edge_runtime.engines.choose import Engines
from edge_runtime.engines.golden import golden_adapter
from edge_runtime.errors import TrainingError
from edge_runtime.protocol.layer_dropout import Stld
from edge_runtime.protocol.messages import decode_message, encode_message
from edge_runtime.protocol.plans import AdapterRef, BackpropPlan, BlobRef
from edge_runtime.protocol.presence import Birth
from edge_runtime.protocol.reports import DeltaReport, PlanAccepted, PlanRefused
from edge_runtime.store.personal import load_personal
from edge_runtime.store.store import Store

if TYPE_CHECKING:
    from edge_runtime.agent.agent import Agent
    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.protocol.topics import Kind


def test_a_device_trains_uploads_when_asked_and_keeps_its_layers(bench: Bench) -> None:
    plan = backprop_plan(bench)
    accepted, report = answers(bench, make_agent(bench), ("plan", plan))
    assert isinstance(accepted, PlanAccepted)
    assert isinstance(report, DeltaReport)
    assert (report.level, report.personal_layers, report.examples) == (2, 1, 12)
    bench.uploads.expect(report.delta, "job", "pi")
    restarted = make_agent(bench)  # its journal has the report, its state directory the delta
    # Sent for the new connection, because nobody has acknowledged it, for the plan, and after the delta.
    assert answers(bench, restarted, ("plan", plan), ack("upload"), ack("taken")) == [report] * 3
    data = bench.uploads.blobs.read(report.delta.sha256)
    assert data is not None
    assert hashlib.sha256(data).hexdigest() == report.delta.sha256
    journal = bench.store.journal()
    personal = load_personal(Store(bench.root / "state"), journal.personal_sha256, bench.bundle, "job")
    (layer,) = personal.layers
    assert layer not in report.layers
    where = layer_slices(bench.bundle.manifest).layers[layer]
    assert not np.array_equal(personal.layers[layer], bench.bundle.initial_adapter()[where])
    again = answers(bench, restarted, ("plan", backprop_plan(bench, attempt=1)))[-1]
    assert again.delta == report.delta  # a new attempt begins with the layers from before the round
    assert bench.store.journal().personal_sha256 == journal.personal_sha256


def test_personal_layers_are_used_in_the_devices_own_predictions(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    """In ``covey-edge predict``: they differ from the shared adapter's predictions, and survive the agent."""
    theta = golden_adapter(bench.bundle.initial_adapter(), bench.bundle.manifest.golden)  # its head is not zero
    adapter = AdapterRef(bench.blobs.add(theta.tobytes()), None, None)
    stld = Stld(steps=8, learning_rate=0.5, personal_share=1.0, weight_decay=0.1)
    answers(bench, make_agent(bench), ("plan", backprop_plan(bench, adapter=adapter, stld=stld, level=3)))
    edge = bench.root / "edge.toml"
    edge.write_text('name = "pi"\nbroker = "mqtt://unused"\nstate_dir = "state"\n[data]\npath = "data.jsonl"\n')
    printed = []
    for flags in ([], ["--shared"]):
        assert main(["predict", "--config", str(edge), *flags, "a fine film", "--format", "json"]) == 0
        printed.append(msgspec.json.decode(capsys.readouterr().out)["predictions"][0]["probabilities"]["good"])
    assert abs(printed[0] - printed[1]) > 1e-4
    path = bench.store.personal_file(bench.store.journal().personal_sha256 or "")
    path.write_bytes(b"broken")
    assert main(["predict", "--config", str(edge), "a fine film", "--format", "json"]) == 5
    assert "missing or damaged" in msgspec.json.decode(capsys.readouterr().out)["error"]


def test_a_device_that_is_asked_again_and_again_gives_up(bench: Bench) -> None:
    agent = make_agent(bench)
    report = answers(bench, agent, ("plan", backprop_plan(bench)))[-1]
    bench.uploads.expect(report.delta, "job", "pi")
    seen = answers(bench, agent, *[ack("upload")] * 5)
    assert [type(message) for message in seen] == [DeltaReport] * 3 + [PlanRefused] * 2
    assert "sent the same delta 3 times" in seen[-1].message
    unexpected = make_agent(bench)
    bench.uploads.forget_all("job")
    refused = answers(bench, unexpected, ("plan", backprop_plan(bench)), ack("upload"))[-1]
    assert refused.code == 7
    assert "404" in refused.message


def queued(bench: Bench, agent: Agent, *messages: tuple[Kind, Any]) -> list[Any]:
    """What an agent reports to messages that have all arrived before it looks at the first."""
    server = bench.hub.join()
    server.subscribe(bench.topic("report"))
    for kind, message in messages:
        bench.hub.publish(bench.topic(kind), encode_message(message), retain=False)
    for _ in range(2 * len(messages)):
        agent.serve_waiting()
    return drain(server)


def test_another_attempt_of_a_round_may_have_the_same_delta(bench: Bench) -> None:
    """Uploads are counted within an attempt: one that others made fail does not use them up."""
    agent = make_agent(bench)
    for attempt in range(6):
        report = answers(bench, agent, ("plan", backprop_plan(bench, attempt=attempt)))[-1]
        assert isinstance(report, DeltaReport)
        bench.uploads.expect(report.delta, "job", "pi")
        assert answers(bench, agent, ack("upload", attempt)) == [report]
        assert bench.uploads.blobs.read(report.delta.sha256) is not None
        answers(bench, agent, ack("taken", attempt))
        bench.uploads.blobs.remove(report.delta.sha256)
        bench.uploads.forget_all("job")


def test_a_server_that_has_moved_is_found_through_its_plan(bench: Bench) -> None:
    """Neither an upload nor a fetch from its old address is waited for, or refused, once its plan is here again."""
    gone = f"http://127.0.0.1:{free_port()}/blobs"
    agent = make_agent(bench)
    report = answers(bench, agent, ("plan", backprop_plan(bench)))[-1]
    answers(bench, agent, ("plan", backprop_plan(bench, blob_url=gone)))  # it is trained already: nothing is fetched
    bench.uploads.expect(report.delta, "job", "pi")
    assert queued(bench, agent, ack("upload"), ("plan", backprop_plan(bench))) == [report]
    assert answers(bench, agent, ack("upload"), ack("taken")) == [report]
    assert bench.uploads.blobs.read(report.delta.sha256) is not None
    theta = bench.bundle.initial_adapter() + np.float32(0.5)
    later = AdapterRef(bench.blobs.add(theta.tobytes()), None, None)
    plans = [backprop_plan(bench, round=1, adapter=later, blob_url=url) for url in (gone, bench.url)]
    seen = queued(bench, agent, *[("plan", plan) for plan in plans])
    assert [type(message) for message in seen] == [PlanAccepted, PlanAccepted, DeltaReport]


def test_a_plan_that_arrives_ends_the_pause_of_an_upload(bench: Bench) -> None:
    agent = make_agent(bench)
    gone = f"http://127.0.0.1:{free_port()}/blobs"
    report = answers(bench, agent, ("plan", backprop_plan(bench)))[-1]
    answers(bench, agent, ("plan", backprop_plan(bench, blob_url=gone)))
    bench.uploads.expect(report.delta, "job", "pi")
    server, plan = bench.hub.join(), backprop_plan(bench)
    server.subscribe(bench.topic("report"))
    bench.hub.publish(bench.topic("report/ack"), encode_message(ack("upload")[1]), retain=False)
    sender = threading.Timer(1.0, bench.hub.publish, (bench.topic("plan"), encode_message(plan)), {"retain": False})
    sender.start()
    agent.serve_waiting()  # tries to upload until the plan is here
    sender.join()
    agent.serve_waiting()
    assert drain(server) == [report]  # no refusal, though the tries were not over


def test_a_delta_waits_for_a_plan_that_says_where_to_send_it(bench: Bench) -> None:
    """After a restart the device sends its report at once; the server's address comes with its plan."""
    plan = backprop_plan(bench)
    report = answers(bench, make_agent(bench), ("plan", plan))[-1]
    bench.uploads.expect(report.delta, "job", "pi")
    restarted = make_agent(bench)
    assert answers(bench, restarted, ack("upload")) == [report]  # and no refusal
    assert answers(bench, restarted, ("plan", plan), ack("upload"), ack("taken")) == [report] * 2
    assert bench.uploads.blobs.read(report.delta.sha256) is not None


@pytest.mark.parametrize(
    ("case", "code", "message"),
    [
        ("memory", 9, r"2 active layers and micro-batches of 1 need \d+ bytes, 1000 are free"),
        ("level", 5, "no training graph with 7 active layers"),
        ("owner", 3, "this device is forward-only"),
        ("privacy", 3, "this device asks for 1 or more"),
        ("bundle", 5, "no training graphs"),
        ("rescale", 5, "do not rescale residuals"),
    ],
)
def test_a_plan_that_a_device_cannot_do_is_refused_before_it_starts(
    bench: Bench, tiny_bundle: Bundle, case: str, code: int, message: str
) -> None:
    changes: dict[str, Any] = {}
    plan = backprop_plan(bench)
    if case == "memory":
        changes = {"bytes_free": 1000}
    elif case == "level":
        plan = backprop_plan(bench, level=7)
    elif case == "owner":
        changes = {"training": "forward-only"}
    elif case == "privacy":
        changes = {"least_noise_multiplier": 1.0}
    elif case == "rescale":
        plan = backprop_plan(bench, stld=Stld(rescale=True))
    else:
        bench.bundle = tiny_bundle
        plan = backprop_plan(bench)
    agent = make_agent(bench, **changes)
    refused = answers(bench, agent, ("plan", plan))[-1]
    assert isinstance(refused, PlanRefused)
    assert refused.code == code
    assert re.search(message, refused.message)


def test_a_device_short_of_memory_trains_with_fewer_rows_at_once(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    free = memory_need.bytes_for(memory_need.level_need(bench.bundle.manifest, 2), 3)
    caplog.set_level("INFO")
    report = answers(bench, make_agent(bench, free), ("plan", backprop_plan(bench)))[-1]
    assert isinstance(report, DeltaReport)
    assert report.level == 2
    assert "memory is short: 3 of 4 rows at once" in caplog.text


def test_a_device_says_what_it_can_hold(bench: Bench) -> None:
    server = bench.hub.join()
    server.subscribe(bench.topic("birth"))
    agent = make_agent(bench)
    answers(bench, agent, ("plan", sync(bench, bench.initial())))
    births = [
        decode_message(event.payload, Birth)
        for event in iter(lambda: server.receive(0), None)
        if hasattr(event, "payload")
    ]
    assert births[0].capability.levels is None  # no bundle yet
    levels = births[-1].capability.levels
    assert levels is not None
    assert [need.level for need in levels] == [1, 2, 3]
    assert (births[-1].capability.bytes_free or 0) > levels[-1].bytes_needed
    assert memory.free_bytes() is not None


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc keeps memory that was freed, and can give it back")
def test_freed_memory_goes_back_to_the_system() -> None:
    """Small blocks below one that is still held: the allocator keeps them all."""
    code = """
import sys
from edge_runtime.host.heap import give_back
def held():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1])
before = held()
blocks = [bytearray(b"x" * 100_000) for _ in range(1000)]
last = bytearray(b"x" * 100_000)
del blocks
kept = held()
give_back()
print(kept - before, held() - before)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    kept_kib, left_kib = map(int, found.split())
    assert kept_kib > 80_000
    assert left_kib < 20_000


@pytest.mark.slow
def test_micro_batches_add_up_to_the_batch(graphs: Bundle) -> None:
    engine, theta = Engines(threads=1).make_training_engine(graphs), graphs.initial_adapter()
    rows = EncodedRows([[2, 5 + n, 7, 3][: 2 + n % 3] for n in range(7)], [n % 2 for n in range(7)], 0)
    whole, parts = np.zeros_like(theta), np.zeros_like(theta)
    losses = [
        mean_gradient(engine, theta, ActiveLayers([0, 2]), [rows.batch(part) for part in indices], out)
        for indices, out in (([range(7)], whole), ([range(3), range(3, 6), range(6, 7)], parts))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert np.abs(whole - parts).max() < 1e-6
    assert np.abs(whole).max() > 1e-3


def test_a_device_runs_fewer_rows_at_once_where_memory_is_short(graphs: Bundle) -> None:
    """The level is what the plan says; what changes is the size of the micro-batches."""
    rows = EncodedRows([[2, 5 + n, 7, 3][: 2 + n % 3] for n in range(8)], [n % 2 for n in range(8)], 0)
    need = memory_need.level_need(graphs.manifest, 3)

    def full_depth(stld: Stld) -> BackpropPlan:
        return BackpropPlan(
            job="job",
            job_seed=1,
            round=0,
            attempt=0,
            bundle_sha256=graphs.sha256,
            stld=stld,
            level=3,
            deadline_s=60.0,
            adapter=AdapterRef(BlobRef("0" * 64, 4), None, None),
            blob_url="http://server/blobs",
        )

    movements, sizes = [], []
    for free, micro in ((None, None), (memory_need.bytes_for(need, 3), None), (memory_need.bytes_for(need, 3), 2)):
        stld = Stld(steps=2, batch_size=8, micro_batch_size=micro)
        levels = check_plan(full_depth(stld), graphs, free, "onnxruntime")
        engine = CountingEngine(graphs, Engines(threads=1).opener())
        theta, fresh = graphs.initial_adapter(), Personal({}, LayerStatistics.of(3))
        work = BackpropSettings(1, 0, "pi", stld, 3, levels)
        result = train_backprop(engine, theta, rows, work, layer_slices(graphs.manifest), fresh)
        assert result is not None
        movements.append(result.movement)
        sizes.append(engine.sizes)
    assert sizes == [[8, 8], [3, 3, 2] * 2, [2] * 8]
    # AdamW divides by the gradient's size: rounding can only move what hardly has a gradient.
    assert np.quantile(np.abs(movements[0] - movements[1]), 0.99) < 1e-5
    with pytest.raises(TrainingError, match=r"3 active layers and micro-batches of 1 need \d+ bytes, 5 are free"):
        check_plan(full_depth(Stld()), graphs, 5, "onnxruntime")


class CountingEngine(BundleTrainingEngine):
    """Knows how many rows it was given each time."""

    def gradients(self, theta: Any, layers: Any, batch: Any, out: Any, scales: Any = None, **more: Any) -> float:
        self.sizes = [*getattr(self, "sizes", []), len(batch.labels)]
        return super().gradients(theta, layers, batch, out, scales, **more)
