"""Fleets in which devices train the last layers alone: choice of the level, merging, the ledger, devices of before."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from bench import Bench, ScriptedDevice, bench_of, birth_of, coordinator, good_report, run_with
from hybrid import JOB, STLD, UploadingDevice, backprop_plan, device, fleet, hybrid_job, run_fleet
from layered import BowlEngines, with_levels

from edge_runtime.agent.backprop_plan import check_plan
from edge_runtime.agent.birth import METHODS
from edge_runtime.bundle import memory_need
from edge_runtime.bundle.layers import layer_slices
from edge_runtime.bundle.levels import TOP_LEVELS, Level
from edge_runtime.errors import BundleError, ConfigError, ProtocolError
from edge_runtime.protocol.messages import decode_plan, encode_message
from edge_runtime.protocol.presence import Capability
from server.bandit.arms import Arm, PriceBasis, backprop_arms, price
from server.errors import JobError
from server.job.fitted import FittedJob, fit_to_bundle
from server.job.job import JobStld, read_job
from server.planning.levels import largest_level
from server.rounds.least_versions import why_too_old
from server.simulation.in_process import run_in_process
from server.storage import queries
from server.storage.ledger import Ledger
from server.storage.ledger_address import LEDGER_FILE
from server.views.history import job_history
from server.views.summary import job_devices

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle

LEVELS: list[Level] = [1, "top:1", 2, "top:2", 3, "top:3"]
BACKPROP = Capability(kind="backprop", levels=None, bytes_free=None)


@pytest.fixture(scope="session")
def both(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle that describes graphs of both kinds."""
    return with_levels(tiny_bundle, tmp_path_factory.mktemp("both") / "bundle", LEVELS)


@pytest.fixture
def bench(tmp_path: Path, both: Bundle) -> Iterator[Bench]:
    with bench_of(tmp_path, both) as made:
        yield made


def chosen(bundle: Bundle, bytes_free: int | None, refused: Level | None = None, **stld: Any) -> Level | None:
    found = device(msgspec.structs.replace(BACKPROP, bytes_free=bytes_free))
    found.refused_level = refused
    job = msgspec.structs.replace(JOB, stld=msgspec.structs.replace(STLD, **stld))
    return largest_level(fit_to_bundle(job, bundle.manifest, bundle.sha256), found)


def test_a_job_has_the_kinds_of_levels_that_it_names(both: Bundle) -> None:
    """Without ``kinds``, a job file means what it meant before there were kinds."""
    fitted = [
        FittedJob.unchecked(msgspec.structs.replace(JOB, stld=stld), both.manifest, both.sha256).levels
        for stld in (JobStld(), JobStld(kinds=["top"]), JobStld(kinds=["drop", "top"]), JobStld(levels=["top:2", 1]))
    ]
    assert fitted == [[1, 2, 3], ["top:1", "top:2", "top:3"], LEVELS, ["top:2", 1]]
    assert chosen(both, None, device_levels={}) == 3
    assert chosen(both, None, device_levels={}, kinds=["top"]) == "top:3"
    assert chosen(both, None, device_levels={"pi": "top:1"}, kinds=["drop", "top"]) == "top:1"
    assert chosen(both, None, refused="top:2", device_levels={}, kinds=["drop", "top"]) == 2


def test_memory_decides_among_levels_of_both_kinds(both: Bundle) -> None:
    """Without traced activations, the layers below that only run count as one more; the weights of all are bound."""
    need = {level: memory_need.level_need(both.manifest, level).bytes_needed for level in both.manifest.levels}
    assert need[1] < need[2] < need["top:1"] < need["top:2"] == need["top:3"] == need[3]
    kinds: dict[str, Any] = {"device_levels": {}, "kinds": ["drop", "top"]}
    assert chosen(both, need["top:3"], **kinds) == "top:3"
    assert chosen(both, need["top:2"], levels=[1, "top:1", 2, "top:2"], device_levels={}) == "top:2"
    assert chosen(both, need["top:2"] - 1, **kinds) == 2  # which trains more than top:1
    assert chosen(both, need["top:1"], levels=[1, "top:1"], device_levels={}) == "top:1"
    assert chosen(both, need["top:1"] - 1, levels=[1, "top:1"], device_levels={}) == 1
    assert chosen(both, need["top:1"] - 1, device_levels={}, kinds=["top"]) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[stld]\nlevels = ["top:9"]\n', "level top:9 of .stld. is not in the bundle; it has 1, top:1, 2, top:2"),
        ('[stld.device_levels]\npi = "top:2"\n', "gives pi level top:2, but its levels are 1, 2, 3"),
        ('[stld]\nlevels = ["bottom:1"]\n', "levels"),
        ('[stld]\nkinds = ["bottom"]\n', "kinds"),
        ("[stld]\nkinds = []\n", "kinds"),
        ('[stld]\nkinds = ["top", "drop"]\nrescale = true\n', "rescale = true: the bundle's training graphs do not"),
    ],
)
def test_a_job_that_does_not_fit_is_named(both: Bundle, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "job.toml").write_text('name = "job"\neval_file = "test.jsonl"\n' + text)
    with pytest.raises(ConfigError, match=message):
        fit_to_bundle(read_job(tmp_path / "job.toml"), both.manifest, both.sha256)


def test_a_bundle_without_the_kind_is_named(tiny_bundle: Bundle, tmp_path: Path) -> None:
    job = msgspec.structs.replace(JOB, stld=JobStld(kinds=["top"]))
    dropouts = with_levels(tiny_bundle, tmp_path / "dropouts")
    with pytest.raises(ConfigError, match=r"kinds = \[top\]: the bundle has no such level; it has 1, 2, 3"):
        fit_to_bundle(job, dropouts.manifest, dropouts.sha256)


def test_the_layers_below_are_merged_from_those_who_trained_them(bench: Bench) -> None:
    """``half`` trains the last layer, ``deep`` all: below, the movement is that of ``deep``, and not half of it."""
    stld = msgspec.structs.replace(STLD, kinds=["drop", "top"], device_levels={"deep": 3, "half": "top:1"})
    deep = UploadingDevice(bench, "deep", layers=[0, 1, 2])
    half = UploadingDevice(bench, "half", layers=[2])
    for scripted in (deep, half):
        scripted.birth = msgspec.structs.replace(scripted.birth, methods=METHODS)
    with coordinator(bench, msgspec.structs.replace(JOB, min_devices=2, min_reports=2, stld=stld)) as (made, ledger):
        assert run_with(made, [deep, half])
        (closed,) = queries.closed_rounds(ledger, "job")
        offers = {offer.device: (offer.level, offer.layers) for offer in queries.offers_of(ledger, "job")}
        rows = {row["device"]: (row["kind"], row["level"]) for row in job_devices(ledger, "job")}
        shown = job_history(ledger, "job")
    assert offers == {"deep": (3, [0, 1, 2]), "half": ("top:1", [2])}
    assert rows == {"deep": ("backprop", 3), "half": ("backprop", "top:1")}
    assert {offer["device"]: offer["level"] for offer in shown["offer_list"]} == {"deep": 3, "half": "top:1"}
    moved = np.frombuffer(bench.blobs.read(closed.result_sha256) or b"", np.float32) - bench.bundle.initial_adapter()
    for where in layer_slices(bench.bundle.manifest).layers:
        assert moved[where] == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": [0, 2]}, r"layers \[0, 2\]: level top:1 trains from layer 2 on"),
        ({"level": 1, "layers": [2]}, "trained at level 1, the plan says top:1"),
    ],
)
def test_a_report_of_what_was_not_asked_for_is_refused(bench: Bench, changes: dict[str, Any], message: str) -> None:
    stld = msgspec.structs.replace(STLD, kinds=["top"], device_levels={"half": "top:1"})
    half = UploadingDevice(bench, "half", **changes)
    half.birth = msgspec.structs.replace(half.birth, methods=METHODS)
    phone = ScriptedDevice(bench, "phone", lambda plan: [good_report(plan, "phone")])
    phone.birth = msgspec.structs.replace(phone.birth, methods=METHODS)
    with coordinator(bench, msgspec.structs.replace(JOB, min_devices=2, stld=stld)) as (made, _):
        assert run_with(made, [half, phone])
    assert half.acks[-1].outcome == "invalid"
    assert re.search(message, half.acks[-1].reason)


def test_a_device_of_before_is_told_that_it_is_too_old(both: Bundle, tiny_bundle: Bundle) -> None:
    """It could read neither the manifest nor the plan; a bundle without top levels it goes on with."""
    assert TOP_LEVELS in METHODS
    new = birth_of("pi", BACKPROP)
    old = msgspec.structs.replace(new, methods=["spzo"])
    new = msgspec.structs.replace(new, methods=METHODS)
    assert why_too_old(both.manifest, new) is None
    assert why_too_old(tiny_bundle.manifest, old) is None
    reason = why_too_old(both.manifest, old)
    assert reason is not None
    assert "cannot read a bundle with level top:1" in reason
    assert "what to do" in reason


def test_a_plan_of_a_dropout_level_is_as_it_was(bench: Bench) -> None:
    """What a plan says of a dropout level is a number, as before there were others."""
    for level in (2, "top:2"):
        plan = backprop_plan(bench, level=level)
        assert decode_plan(encode_message(plan)) == plan
    assert msgspec.msgpack.decode(encode_message(backprop_plan(bench)))["level"] == 2
    broken = encode_message(backprop_plan(bench)).replace(b"\xa5level\x02", b"\xa5level\xa5top:0")
    with pytest.raises(ProtocolError, match="level"):
        decode_plan(broken)


def test_a_device_checks_a_plan_before_it_loads_anything(bench: Bench, tiny_bundle: Bundle, tmp_path: Path) -> None:
    plan = backprop_plan(bench, level="top:2")
    assert check_plan(plan, bench.bundle, None, "onnxruntime") == dict.fromkeys(LEVELS, 4)
    rescaled = msgspec.structs.replace(plan, stld=msgspec.structs.replace(plan.stld, rescale=True))
    assert check_plan(rescaled, bench.bundle, None, "onnxruntime")  # at a top level there is nothing to rescale
    dropouts = with_levels(tiny_bundle, tmp_path / "dropouts")
    with pytest.raises(BundleError, match=r"no training graph of level top:2; its levels are \[1, 2, 3\]"):
        check_plan(plan, dropouts, None, "onnxruntime")
    with pytest.raises(BundleError, match="do not rescale"):
        check_plan(msgspec.structs.replace(rescaled, level=2), bench.bundle, None, "onnxruntime")


def test_levels_of_both_kinds_are_arms() -> None:
    """A top level costs a forward pass of all layers, and the backward pass of those that it trains."""
    basis = PriceBasis(12, 32, 2, 8, JOB.step, STLD)
    arms = backprop_arms(["top:3", 6, 3])
    assert [arm.name for arm in arms] == ["level 3", "level top:3", "level 6"]
    rows = STLD.steps * STLD.batch_size
    assert [price(arm, basis, None).cost / rows for arm in arms] == [0.75, 1.5, 1.5]
    for arm in arms:
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(arm), type=Arm) == arm
    older = msgspec.msgpack.encode({"kind": "backprop", "level": 3, "split": None, "back_perturbations": None})
    assert msgspec.msgpack.decode(older, type=Arm) == arms[0]


def test_a_fleet_with_both_kinds_learns_agrees_and_resumes_to_the_same_hash(both: Bundle, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"stld": {"kinds": ["drop", "top"], "device_levels": {"deep": 3, "half": "top:2"}}}
    whole = run_fleet(tmp_path / "whole", both, **fields)
    theta = np.fromfile(tmp_path / "whole" / "server" / "blobs" / whole["adapter_sha256"], np.float32)
    bowl = BowlEngines().make_training_engine(both)
    assert bowl.loss(theta) < 0.8 * bowl.loss(both.initial_adapter())
    with pytest.raises(JobError, match="was stopped"):
        run_fleet(tmp_path / "stopped", both, 3, **fields)
    assert run_fleet(tmp_path / "stopped", both, **fields)["adapter_sha256"] == whole["adapter_sha256"]
    ledger = Ledger(tmp_path / "whole" / "server" / LEDGER_FILE, read_only=True)
    offers = [offer for offer in queries.offers_of(ledger, "job") if offer.index == 2 and offer.layers is not None]
    assert [(offer.device, offer.level) for offer in offers] == [("deep", 3), ("half", "top:2")]
    assert set(offers[1].layers or []) <= {1, 2}


def test_a_fleet_learns_on_onnx_runtime(tiny_export: Any, tmp_path: Path) -> None:
    """With real graphs, personal layers among those that are trained, and devices that know nothing of it."""
    bundle = tiny_export("bert", levels=("top:1", "top:3"))
    stld = {"learning_rate": 0.01, "steps": 8, "kinds": ["top"], "device_levels": {"half": "top:1"}}
    fitted, bundle = hybrid_job(tmp_path, bundle, rounds=3, stld=stld)
    result = run_in_process(fitted, bundle, tmp_path / "server", fleet(tmp_path))
    assert result["loss_end"] < result["loss_start"] - 0.01
    rows = job_devices(Ledger(tmp_path / "server" / LEDGER_FILE, read_only=True), "job")
    assert [(row["device"], row["level"]) for row in rows] == [
        ("deep", "top:3"),
        ("half", "top:1"),
        ("phone", None),
        ("tablet", None),
    ]
