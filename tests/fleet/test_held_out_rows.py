"""A device measures its own model on rows that it never trains on, says a fall, and never sends a row."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from bench import FORWARD_ONLY, Bench, bench_of, birth_of
from hypothesis import given
from hypothesis import strategies as st
from predicting import leave_model
from tiny_models import reviews, write_rows

from edge_runtime.agent.agent import Agent
from edge_runtime.agent.config import UpdateRules
from edge_runtime.agent.held_out import HeldOutWatch
from edge_runtime.backprop.importance import LayerStatistics
from edge_runtime.backprop.round import Personal
from edge_runtime.bundle.folder import Bundle
from edge_runtime.bundle.layers import layer_slices
from edge_runtime.cli import main
from edge_runtime.data.corrections import add_corrections
from edge_runtime.device.machine import this_machine
from edge_runtime.engines.choose import Engines
from edge_runtime.engines.predict import predict
from edge_runtime.network.in_process import InProcessTransport
from edge_runtime.network.transport import Message
from edge_runtime.protocol.held_out import HeldOut
from edge_runtime.protocol.messages import decode_message
from edge_runtime.protocol.presence import Birth
from edge_runtime.store.accuracies import KEPT, Accuracies, Measured, add_measured, held_out, read_accuracies
from edge_runtime.store.personal import save_personal, with_personal
from edge_runtime.values import FloatVector
from server.cli import main as server_main
from server.metrics.fleet import fleet_families
from server.storage.ledger import Ledger
from server.storage.ledger_address import LEDGER_FILE

ROWS = 40


@pytest.fixture
def bench(tmp_path: Path, tiny_bundle: Bundle) -> Iterator[Bench]:
    with bench_of(tmp_path, tiny_bundle) as made:
        own = tmp_path / "own.jsonl"
        write_rows(reviews(ROWS, 7), own)
        corrections = str(tmp_path / "corrections.jsonl")
        made.config = msgspec.structs.replace(
            made.config,
            data=msgspec.structs.replace(made.config.data, corrections=corrections),
            updates=UpdateRules(str(own), largest_fall=0.05),
        )
        yield made


def accuracy_of(bundle: Bundle, theta: FloatVector) -> float:
    rows = reviews(ROWS, 7)
    found = predict(bundle, theta, [row["text"] for row in rows], Engines(threads=1))
    return float(np.mean([one.label == row["label"] for one, row in zip(found, rows, strict=True)]))


def last_birth(listener: InProcessTransport) -> Birth | None:
    last = None
    while (event := listener.receive(0)) is not None:
        if isinstance(event, Message):
            last = decode_message(event.payload, Birth)
    return last


def tried(bundle: Bundle) -> list[FloatVector]:
    """Return a better adapter and a worse one."""
    theta, rng = bundle.initial_adapter(), np.random.default_rng(0)
    found = [(theta + rng.normal(0, 1.0, theta.size)).astype(np.float32) for _ in range(12)]
    found.sort(key=lambda one: accuracy_of(bundle, one))
    assert accuracy_of(bundle, found[-1]) > accuracy_of(bundle, found[0]) + 0.05
    return [found[-1], found[0]]


def test_each_model_is_measured_once_and_a_fall_is_announced(bench: Bench, tiny_bundle: Bundle) -> None:
    listener = bench.hub.join()
    listener.subscribe(bench.topic("birth"))
    agent = bench.agent()
    agent.serve_waiting()
    first = last_birth(listener)
    assert first is None or first.held_out is msgspec.UNSET  # there is no model yet
    better, worse = tried(tiny_bundle)
    wanted = [accuracy_of(tiny_bundle, theta) for theta in (better, worse)]
    for theta, accuracy, has_fallen in ((better, wanted[0], False), (worse, wanted[1], True)):
        leave_model(bench.store.root, tiny_bundle, theta)
        for _ in range(3):  # idle turns
            agent.serve_waiting()
        said = last_birth(listener)
        assert said is not None
        assert said.held_out == HeldOut(pytest.approx(accuracy), ROWS, pytest.approx(wanted[0]), has_fallen)
    assert len(read_accuracies(bench.store.root).measured) == 2
    again = Agent(bench.config, bench.store, bench.hub.join(), "boot-2")  # a restart says what is known
    again.serve_waiting()
    said = last_birth(listener)
    assert said is not None
    assert said.held_out.has_fallen  # type: ignore[union-attr]


def test_corrections_are_no_held_out_rows(bench: Bench) -> None:
    add_corrections(Path(bench.config.data.corrections), [{"text": "never seen", "label": "good"}], 10)
    leave_model(bench.store.root, bench.bundle)
    bench.agent().serve_waiting()
    assert [one.rows for one in read_accuracies(bench.store.root).measured] == [ROWS]


def test_the_devices_own_layers_are_measured(bench: Bench, tiny_bundle: Bundle) -> None:
    shared, (own, _) = tiny_bundle.initial_adapter(), tried(tiny_bundle)
    slices = layer_slices(tiny_bundle.manifest).layers
    personal = Personal(
        {layer: own[where].copy() for layer, where in enumerate(slices)},
        LayerStatistics.of(tiny_bundle.manifest.model.layers),
    )
    sha256 = save_personal(bench.store, tiny_bundle, "job", personal)
    leave_model(bench.store.root, tiny_bundle, shared, personal_sha256=sha256)
    bench.agent().serve_waiting()
    (measured,) = read_accuracies(bench.store.root).measured
    assert measured.personal_sha256 == sha256
    assert measured.accuracy == pytest.approx(accuracy_of(tiny_bundle, with_personal(shared, personal, tiny_bundle)))


def test_a_plan_interrupts_and_the_measurement_goes_on_after_it(bench: Bench) -> None:
    leave_model(bench.store.root, bench.bundle)
    watch = HeldOutWatch(bench.config, bench.store, this_machine(bench.config.eligibility, bench.root))
    assert not watch.turn(lambda: True)  # a plan is here: nothing is begun
    looks = iter([False, True])
    assert not watch.turn(lambda: next(looks))  # one batch of three, then a plan
    assert not read_accuracies(bench.store.root).measured
    assert watch.turn(lambda: False)
    assert len(read_accuracies(bench.store.root).measured) == 1
    assert not watch.turn(lambda: False)


def test_rows_that_cannot_be_used_are_said_without_a_word_of_them(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    leave_model(bench.store.root, bench.bundle)
    own = Path(bench.config.updates.own_rows or "")
    own.write_text('{"text": "very private", "label": "nonsense of mine"}\n')
    agent = bench.agent()
    for _ in range(3):
        agent.serve_waiting()
    said = [record.getMessage() for record in caplog.records if "own rows" in record.getMessage()]
    assert len(said) == 1
    assert "private" not in said[0]
    write_rows(reviews(ROWS, 7), own)  # mended: measured without a restart
    agent.serve_waiting()
    assert len(read_accuracies(bench.store.root).measured) == 1


def test_a_damaged_file_of_accuracies_is_set_aside(bench: Bench) -> None:
    (bench.store.root / "accuracies.json").write_text("{")
    leave_model(bench.store.root, bench.bundle)
    bench.agent().serve_waiting()
    assert len(read_accuracies(bench.store.root).measured) == 1


def measured(accuracy: float, bundle: str = "a", rows: str = "b") -> Measured:
    return Measured(
        at_s=1.0,
        bundle_sha256=bundle * 64,
        adapter_sha256=None,
        personal_sha256=None,
        rows_sha256=rows * 64,
        rows=10,
        accuracy=accuracy,
    )


@given(st.lists(st.tuples(st.floats(0, 1), st.sampled_from("ab"), st.sampled_from("cd")), max_size=12), st.floats(0, 1))
def test_only_measurements_of_the_same_bundle_and_rows_are_compared(
    made: list[tuple[float, str, str]], largest_fall: float
) -> None:
    found = held_out(Accuracies(measured=tuple(measured(*one) for one in made)), largest_fall)
    if not made:
        assert found is None
        return
    last, alike = made[-1], [accuracy for accuracy, *kind in made if kind == list(made[-1][1:])]
    assert found is not None
    assert (found.accuracy, found.best) == (last[0], max(alike))
    assert found.has_fallen == (last[0] < max(alike) - largest_fall)


def test_the_oldest_measurements_go(tmp_path: Path) -> None:
    for number in range(KEPT + 3):
        add_measured(tmp_path, measured(number / 1000))
    kept = read_accuracies(tmp_path).measured
    assert [one.accuracy for one in kept] == [number / 1000 for number in range(3, KEPT + 3)]


def test_the_server_shows_what_devices_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.closing(Ledger(tmp_path / LEDGER_FILE)) as ledger:
        for name, found in (
            ("fine", HeldOut(0.75, 40, 0.78, has_fallen=False)),
            ("worse", HeldOut(0.5, 40, 0.75, has_fallen=True)),
            ("silent", msgspec.UNSET),
        ):
            birth = msgspec.structs.replace(birth_of(name, FORWARD_ONLY), held_out=found)
            ledger.device_born("f", name, msgspec.json.encode(birth).decode())
        scraped = {
            (sample.name, sample.labels.get("device")): sample.value
            for family in fleet_families(ledger, "f")
            for sample in family.samples
        }
    assert {key: value for key, value in scraped.items() if "held_out" in key[0]} == {
        ("covey_device_held_out_accuracy_ratio", "fine"): 0.75,
        ("covey_device_held_out_accuracy_ratio", "worse"): 0.5,
        ("covey_devices_held_out_fallen", None): 1,
    }
    assert server_main(["device", "list", "--state-dir", str(tmp_path), "--format", "json"]) == 0
    listed = {row["device"]: row["held_out"] for row in json.loads(capsys.readouterr().out)["devices"]}
    assert listed["worse"] == {"accuracy": 0.5, "rows": 40, "best": 0.75, "has_fallen": True}
    assert listed["silent"] is None
    assert server_main(["device", "list", "--state-dir", str(tmp_path)]) == 0
    assert "0.500, fallen from 0.750" in capsys.readouterr().out


def test_doctor_warns_of_a_fall(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    path = bench.root / "edge.toml"
    plain = 'name = "pi"\nbroker = "mqtt://127.0.0.1:1"\nstate_dir = "state"\n[data]\npath = "data.jsonl"\n'

    def finding() -> tuple[str, float | None]:
        main(["doctor", "--config", str(path), "--format", "json"])
        checks = json.loads(capsys.readouterr().out)["checks"]
        (found,) = [check for check in checks if check["check"] == "held-out"]
        return found["status"], found["accuracy"]

    path.write_text(plain)
    assert finding() == ("absent", None)
    path.write_text(plain + '[updates]\nown_rows = "own.jsonl"\n')
    assert finding() == ("absent", None)
    add_measured(bench.store.root, measured(0.8))
    assert finding() == ("ok", 0.8)
    add_measured(bench.store.root, measured(0.7))
    assert finding() == ("warning", 0.7)
