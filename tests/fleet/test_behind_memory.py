"""What training behind a kept front takes: what is mapped while it trains, and which levels the server gives for it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from bench import birth_of
from fleets import edge_configs, write_job
from tiny_models import LAYERS
from top_plans import top_plan

from edge_runtime.agent.backprop_plan import do_backprop
from edge_runtime.agent.frozen_fronts import FrozenFronts
from edge_runtime.agent.loaded_bundle import LoadedBundle
from edge_runtime.backprop.importance import LayerStatistics
from edge_runtime.backprop.round import Personal
from edge_runtime.bundle.behind import BEHIND_FILE
from edge_runtime.bundle.folder import Bundle
from edge_runtime.bundle.levels import Level
from edge_runtime.bundle.memory_need import bytes_for, level_need
from edge_runtime.engines.choose import Engines
from edge_runtime.protocol.presence import Capability
from server.fleet.devices import Device
from server.job.behind_needs import fit_opened
from server.job.job import Job, JobStld
from server.planning.levels import largest_level, level_reasons
from server.serving.loaded_job import load_job

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.backprop.round import BackpropResult
    from server.job.fitted import FittedJob

pytestmark = pytest.mark.timeout(600)
STLD = JobStld(steps=2, batch_size=4, micro_batch_size=1, learning_rate=0.05, kinds=["top"])
JOB = Job(name="job", eval_file="unused", rounds=2, split=2, front="frozen", stld=STLD)


@pytest.fixture(scope="session")
def bundle(tiny_export: Callable[..., Bundle]) -> Bundle:
    levels: tuple[Level, ...] = (1, "top:1", 2, "top:2")
    return tiny_export("bert", splits=(1, 2), train="AB", levels=levels)


class Trained:
    """A device's backprop rounds behind split 2, and what it saw while it trained them."""

    def __init__(self, bundle: Bundle, root: Path, boot_id: str | None = "monday") -> None:
        (config,) = edge_configs(root, 1)
        self.loaded = LoadedBundle(bundle, config.data, Engines(threads=1))
        self.fronts = FrozenFronts(config, root / "state", boot_id)
        self.mapped: list[int] = []
        self.now = 0.0

    def round(self, index: int = 0, most_runs: int = 100) -> BackpropResult | None:
        theta = self.loaded.bundle.initial_adapter()
        plan = top_plan(self.loaded.bundle, round=index, frozen_split=2)
        self.mapped.clear()
        runs = 0

        def goes_on(step: int, loss: float) -> bool:
            nonlocal runs
            if step < 0:
                assert math.isnan(loss)
                runs, self.now = runs + 1, self.now + 10
                return runs <= most_runs
            self.mapped.append(mappings(self.loaded.bundle))
            return True

        start = (theta, Personal({}, LayerStatistics.of(LAYERS)))
        return do_backprop(plan, "pi", self.loaded, self.fronts, start, None, goes_on, lambda: self.now)


def mappings(bundle: Bundle) -> int:
    """Return how often this process has the bundle's weights mapped: the training engine once, an open front once."""
    name = str(bundle.file(bundle.manifest.weights_file))
    return sum(line.endswith(name) for line in Path("/proc/self/maps").read_text().splitlines())


@pytest.mark.slow
def test_while_a_round_trains_the_front_is_not_mapped(bundle: Bundle, tmp_path: Path) -> None:
    before = mappings(bundle)
    device = Trained(bundle, tmp_path)
    for index, seconds in enumerate((80.0, 0.0)):  # eight rows at ten seconds each, then none
        result = device.round(index)
        assert result is not None
        assert device.mapped == [before + 1] * 4
        assert result.seconds == seconds
        assert (result.front_hits, result.front_misses) == ((24, 8), (32, 0))[index]


@pytest.mark.slow
def test_a_round_that_is_abandoned_before_its_first_step_goes_on_later(bundle: Bundle, tmp_path: Path) -> None:
    device = Trained(bundle, tmp_path)
    assert device.round(most_runs=3) is None
    assert device.mapped == []
    result = device.round(most_runs=5)
    assert result is not None
    assert result.front_misses == 5


def fleet_device(free: int, fitted: FittedJob, runtime: str = "onnxruntime", *, has_bundle: bool = True) -> Device:
    """A device as the server knows it, that has announced what fits with the graphs of the whole model."""
    needs = [level_need(fitted.manifest, level) for level in fitted.manifest.levels]
    fit = [need for need in needs if need.bytes_needed <= free] if has_bundle else None
    birth = birth_of(
        "pi", Capability("backprop", fit, free), bundle_sha256=fitted.bundle_sha256 if has_bundle else None
    )
    return Device("pi", birth=msgspec.structs.replace(birth, runtimes={runtime: "1.23"}))


@pytest.mark.parametrize("has_bundle", [True, False])
def test_a_device_with_little_memory_gets_a_level_behind_a_kept_front(bundle: Bundle, has_bundle: bool) -> None:
    fitted = fit_opened(JOB, bundle)
    free = bytes_for(fitted.need("top:1"), 1)
    assert free < bytes_for(level_need(bundle.manifest, "top:1"), 1)
    assert largest_level(fitted, fleet_device(free, fitted, has_bundle=has_bundle)) == "top:1"
    short = fleet_device(free - 1, fitted, has_bundle=has_bundle)
    assert largest_level(fitted, short) is None
    assert level_reasons(fitted, short) == {"top:1": f"does not fit into the {free - 1} bytes that are free"}
    assert largest_level(fitted, fleet_device(free, fitted, "executorch", has_bundle=has_bundle)) is None


def test_levels_of_the_whole_model_need_what_they_needed(bundle: Bundle) -> None:
    """A job that trains its front, and a bundle that has no graphs behind a split."""
    files = [entry for entry in bundle.manifest.files if entry.path != BEHIND_FILE]
    older = Bundle(bundle.path, msgspec.structs.replace(bundle.manifest, files=files), bundle.sha256)
    trained = msgspec.structs.replace(JOB, front=None)
    for job, opened in ((JOB, older), (trained, bundle)):
        fitted = fit_opened(job, opened)
        assert fitted.behind == {}
        assert fitted.need("top:1") == level_need(bundle.manifest, "top:1")
        free = bytes_for(fit_opened(JOB, bundle).need("top:1"), 1)
        assert largest_level(fitted, fleet_device(free, fitted)) is None


def test_a_server_reads_what_levels_need_with_the_job(bundle: Bundle, tmp_path: Path) -> None:
    stld: dict[str, Any] = {"kinds": ["top"], "steps": 2}
    fitted, _ = load_job(write_job(tmp_path, front="train-after:1", split=1, stld=stld), bundle.path)
    assert list(fitted.behind) == ["top:1", "top:2"]
