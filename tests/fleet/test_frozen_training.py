"""Backprop devices behind a frozen front: what they keep, what a job may say, who is too old, and whole fleets."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from bench import birth_of
from fleets import edge_configs, write_job
from tiny_models import LAYERS
from top_plans import top_plan

from edge_runtime.agent.backprop_plan import check_plan, do_backprop
from edge_runtime.agent.birth import METHODS
from edge_runtime.agent.config import FrontRules
from edge_runtime.agent.frozen_fronts import FrozenFronts
from edge_runtime.agent.loaded_bundle import LoadedBundle
from edge_runtime.backprop.importance import LayerStatistics
from edge_runtime.backprop.round import Personal
from edge_runtime.bundle.adapter import map_adapter
from edge_runtime.bundle.behind import BEHIND_FILE, find_behind
from edge_runtime.bundle.folder import Bundle
from edge_runtime.bundle.layout import front_size
from edge_runtime.bundle.levels import Level
from edge_runtime.bundle.memory_need import bytes_for, graph_need, level_need
from edge_runtime.engines.choose import Engines
from edge_runtime.errors import ConfigError, TrainingError
from edge_runtime.protocol.layer_dropout import Stld
from edge_runtime.protocol.presence import FROZEN_TRAINING, Capability
from server.bandit.arms import PriceBasis, backprop_arms, price, price_left
from server.job.fitted import FittedJob, fit_to_bundle
from server.job.job import Job, JobStld, read_job
from server.rounds.least_versions import why_no_frozen_front
from server.serving.loaded_job import load_job
from server.simulation.in_process import run_in_process
from server.storage import queries
from server.storage.ledger import Ledger
from server.storage.ledger_address import LEDGER_FILE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_runtime.agent.config import EdgeConfig
    from edge_runtime.backprop.round import BackpropResult

pytestmark = pytest.mark.timeout(600)
LEVELS: tuple[Level, ...] = (1, "top:1", 2, "top:2")
STLD = JobStld(steps=2, batch_size=4, learning_rate=0.05, kinds=["top"])
JOB = Job(name="job", eval_file="unused", rounds=2, split=1, front="frozen", stld=STLD)


@pytest.fixture(scope="session")
def bundle(tiny_export: Callable[..., Bundle]) -> Bundle:
    return tiny_export("bert", splits=(1, 2), train="AB", levels=LEVELS)


class Device:
    """A device's part of backprop rounds, without a network."""

    def __init__(self, bundle: Bundle, config: EdgeConfig, state: Path) -> None:
        self.loaded = LoadedBundle(bundle, config.data, Engines(threads=1))
        self.fronts = FrozenFronts(config, state)
        self.theta = bundle.initial_adapter()

    def train(self, **changes: Any) -> BackpropResult:
        plan = top_plan(self.loaded.bundle, **changes)
        personal = Personal({}, LayerStatistics.of(LAYERS))
        start = (self.theta, personal)
        result = do_backprop(plan, "pi", self.loaded, self.fronts, start, None, lambda *_: True, time.monotonic)
        assert result is not None
        return result


def test_a_row_passes_the_front_once(bundle: Bundle, tmp_path: Path) -> None:
    """Eight rows, 32 looked at per round: the second round runs no front, nor does another process of the device."""
    (config,) = edge_configs(tmp_path, 1)
    device = Device(bundle, config, tmp_path / "state")
    plain = device.train()
    assert (plain.front_hits, plain.front_misses) == (None, None)
    first, second = device.train(frozen_split=2), device.train(frozen_split=2, round=1)
    assert (first.front_hits, first.front_misses) == (24, 8)
    assert (second.front_hits, second.front_misses) == (32, 0)
    assert np.abs(first.movement - plain.movement).max() < 1e-3 * np.abs(plain.movement).max()
    device.fronts.close()
    again = Device(bundle, config, tmp_path / "state")
    restarted = again.train(frozen_split=2)
    assert restarted.front_misses == 0
    assert restarted.movement.tobytes() == first.movement.tobytes()


def test_what_is_kept_changes_no_bit(bundle: Bundle, tmp_path: Path) -> None:
    """With no room at all, every row is run alone as it would be for the file."""
    (config,) = edge_configs(tmp_path, 1)
    nothing = msgspec.structs.replace(config, fronts=FrontRules(cache_mb=0))
    kept, run = Device(bundle, config, tmp_path / "kept"), Device(bundle, nothing, tmp_path / "none")
    for index in range(2):
        found = [device.train(frozen_split=1, level="top:2", round=index) for device in (kept, run)]
        assert found[0].movement.tobytes() == found[1].movement.tobytes()
    assert found[1].front_hits == 0
    assert not list((tmp_path / "none" / "fronts").glob("*.front"))


def test_another_front_is_not_taken_for_this_one(bundle: Bundle, tmp_path: Path) -> None:
    """The server has trained the front after all: what was kept is of no use, and nothing of it is used."""
    (config,) = edge_configs(tmp_path, 1)
    device = Device(bundle, config, tmp_path / "state")
    device.train(frozen_split=2)
    size = front_size(bundle.manifest.parameters, 2)
    device.theta = device.theta.copy()
    device.theta[:size] += np.float32(0.01)
    changed, plain = device.train(frozen_split=2), device.train()
    assert changed.front_misses == 8
    assert np.abs(changed.movement - plain.movement).max() < 1e-3 * np.abs(plain.movement).max()


def test_a_bundle_without_such_graphs_trains_the_whole_model(bundle: Bundle, tmp_path: Path) -> None:
    (config,) = edge_configs(tmp_path, 1)
    files = [entry for entry in bundle.manifest.files if entry.path != BEHIND_FILE]
    older = Bundle(bundle.path, msgspec.structs.replace(bundle.manifest, files=files), bundle.sha256)
    result, plain = (Device(older, config, tmp_path / "state").train(**more) for more in ({"frozen_split": 2}, {}))
    assert result.front_hits is None
    assert result.movement.tobytes() == plain.movement.tobytes()


def test_a_plan_needs_the_memory_of_what_lies_behind_the_split(bundle: Bundle) -> None:
    behind = find_behind(bundle.path, bundle.manifest, 2)
    less, whole = graph_need(bundle.manifest, behind["top:1"]), level_need(bundle.manifest, "top:1")
    plan: Any = msgspec.convert({"stld": Stld(batch_size=1), "level": "top:1"}, _Part)
    free = bytes_for(less, 1)
    assert free < bytes_for(whole, 1)
    assert check_plan(plan, bundle, free, "onnxruntime", behind)["top:1"] == 1
    with pytest.raises(TrainingError, match=f"need {free} bytes, {free - 1} are free"):
        check_plan(plan, bundle, free - 1, "onnxruntime", behind)
    with pytest.raises(TrainingError, match=f"{free} are free"):
        check_plan(plan, bundle, free, "onnxruntime")


class _Part(msgspec.Struct):
    """What check_plan reads of a plan."""

    stld: Stld
    level: Level


def test_backprop_devices_train_behind_the_split_alone(bundle: Bundle) -> None:
    fitted = fit_to_bundle(JOB, bundle.manifest, bundle.sha256)
    assert fitted.levels == ["top:1", "top:2"]
    at_two = fit_to_bundle(msgspec.structs.replace(JOB, split=2), bundle.manifest, bundle.sha256)
    assert at_two.levels == ["top:1"]
    refused: list[tuple[dict[str, Any], str]] = [
        ({"stld": JobStld(levels=["top:1", "top:2"]), "split": 2}, "level top:2 of .* layers before split 2"),
        ({"stld": JobStld()}, r"level 1 of \[stld\] trains layers before split 1"),
        ({"stld": JobStld(kinds=["drop", "top"], levels=[2])}, "level 2 of"),
    ]
    for changes, said in refused:
        with pytest.raises(ConfigError, match=said) as caught:
            fit_to_bundle(msgspec.structs.replace(JOB, **changes), bundle.manifest, bundle.sha256)
        assert 'kinds = ["top"]' in caught.value.hint


def test_a_device_that_does_not_know_it_is_told(bundle: Bundle) -> None:
    newer = msgspec.structs.replace(birth_of("pi", Capability("backprop", None, None)), methods=METHODS)
    older = msgspec.structs.replace(newer, methods=[method for method in METHODS if method != FROZEN_TRAINING])
    said = why_no_frozen_front(JOB, older) or ""
    assert 'front = "frozen" beside [stld]' in said
    assert "install a newer version" in said
    assert why_no_frozen_front(msgspec.structs.replace(JOB, stld=None), older) is None
    assert why_no_frozen_front(JOB, newer) is None


def test_a_price_is_less_by_the_front(bundle: Bundle) -> None:
    """top:1 of three layers costs (3 + 2) / 3 forward passes, of which two layers, 2 / 3, lie before split 2."""
    fitted = FittedJob.unchecked(msgspec.structs.replace(JOB, split=2), bundle.manifest, bundle.sha256)
    basis = PriceBasis(3, 48, 1, 1, fitted.job.rule_of(0), fitted.job.stld_of(0))
    (frozen,) = backprop_arms(["top:1"], 2)
    (plain,) = backprop_arms(["top:1"])
    assert (frozen.name, plain.name) == ("level top:1, frozen front", "level top:1")
    assert price(plain, basis, None).front_share == 0.0
    assert price_left(price(frozen, basis, None).front_share, 0.0) == pytest.approx(3 / 5)


@pytest.mark.parametrize("front", ["frozen", "train-after:1"])
def test_a_fleet_of_both_kinds(bundle: Bundle, tmp_path: Path, front: str) -> None:
    """Real agents: two backprop devices and a forward-only one; each proves the server's adapter by its hash."""
    stld = {"kinds": ["top"], "steps": 2, "batch_size": 4, "learning_rate": 0.05, "device_levels": {"device-2": 0}}
    path = write_job(
        tmp_path, front=front, rounds=3, min_devices=3, split=1, stld=stld, bandit={"back_perturbations": [2]}
    )
    fitted, opened = load_job(path, bundle.path)
    assert read_job(path).frozen_rounds == (3 if front == "frozen" else 1)
    configs = [msgspec.structs.replace(config, training="auto") for config in edge_configs(tmp_path, 3)]
    result = run_in_process(fitted, opened, tmp_path / "server", configs)
    assert result["rounds"] == 3
    size, initial = front_size(opened.manifest.parameters, 1), opened.initial_adapter()
    adapter = map_adapter(tmp_path / "server" / "blobs" / result["adapter_sha256"], initial.size)
    assert (adapter[:size].tobytes() == initial[:size].tobytes()) == (front == "frozen")
    assert not np.array_equal(adapter[size:], initial[size:])
    for index in range(2):
        assert list((tmp_path / f"device-{index}" / "fronts").glob("*.front"))
    ledger = Ledger(tmp_path / "server" / LEDGER_FILE, read_only=True)
    for index in range(3):
        names = {choice.arm.name for choice in queries.choices_of(ledger, "job", index, 0) if choice.arm}
        assert {name.endswith(", frozen front") for name in names} == {front == "frozen" or index == 0}
