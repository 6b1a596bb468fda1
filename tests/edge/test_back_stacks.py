"""How many perturbed adapters a device measures in one call: by its profile, by edge.toml, and by its memory."""

from __future__ import annotations

import json
import logging
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from bench import Bench, bench_of, drain, sync

from edge_runtime import cli as edge_cli
from edge_runtime.agent.back_stacks import BackStacks
from edge_runtime.agent.config import EdgeConfig, ForwardRules
from edge_runtime.agent.loaded_bundle import LoadedBundle
from edge_runtime.bundle.folder import open_bundle
from edge_runtime.bundle.stack import STACK_FILE, NoStack, StackGraph, adapters_that_fit, call_bytes, find_stack
from edge_runtime.data.examples import DataConfig
from edge_runtime.engines.back_stack import BundleBackStack
from edge_runtime.engines.choose import Engines
from edge_runtime.errors import BundleError
from edge_runtime.profiling.stacks import choose_adapters
from edge_runtime.protocol.messages import encode_message
from edge_runtime.protocol.profile import PROFILE_FILE, Profile, StackProfile, StackTiming
from edge_runtime.protocol.profile_check import decode_profile, encode_profile
from edge_runtime.protocol.reports import RoundReport
from edge_runtime.protocol.round_log import unpack_scalars
from edge_runtime.protocol.step_rule import StepRule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from edge_runtime.bundle.folder import Bundle

TRAINED = StepRule(back_perturbations=3, learning_rate=0.05, eps=0.01)
FROZEN = msgspec.structs.replace(TRAINED, front="frozen")
GB = 1 << 30


@pytest.fixture(scope="module")
def stacked(tiny_export: Callable[..., Bundle]) -> Bundle:
    return tiny_export("bert", stack=True, splits=(1, 2, 3), train="AB")


@pytest.fixture
def bench(tmp_path: Path, stacked: Bundle) -> Iterator[Bench]:
    with bench_of(tmp_path, stacked) as made:
        made.blobs.add(made.bundle.initial_adapter().tobytes())
        yield made


@pytest.fixture(scope="module")
def profile(stacked: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Profile:
    """A profile that covey-edge profile has measured, on one thread."""
    path = tmp_path_factory.mktemp("profile") / "profile.json"
    arguments = ["--bundle", str(stacked.path), "--seconds", "0.01", "--shapes", "1x8,4x16", "--threads", "1"]
    assert edge_cli.main(["profile", *arguments, "--output", str(path), "--format", "json"]) == 0
    return decode_profile(path.read_bytes())


def pays(profile: Profile, adapters: int, split: int = 2) -> Profile:
    """The profile of a board on which so many adapters in one call take half the time."""
    common = {"batch_size": 4, "tokens": 16, "count": 5, "single_s": 2e-3}
    timings = [StackTiming(adapters=n, stacked_s=1e-3 if n == adapters else 3e-3, **common) for n in (2, 4, 8)]
    return msgspec.structs.replace(profile, stacks=[StackProfile(engine="onnxruntime", split=split, timings=timings)])


def report_of(bench: Bench, rule: StepRule, wanted: Any) -> RoundReport:
    """Train one round of three steps as a device with this setting."""
    bench.config = msgspec.structs.replace(bench.config, forward=ForwardRules(wanted))
    plan = msgspec.structs.replace(bench.train_plan(bench.initial(), steps=3, batch_size=4), rule=rule)
    server, found, stop_at = bench.hub.join(), [], time.monotonic() + 60
    server.subscribe(bench.topic("report"))

    def should_stop() -> bool:
        for report in drain(server):
            if isinstance(report, RoundReport) and not found:
                found.append(report)
                bench.hub.publish(bench.topic("plan"), encode_message(sync(bench, bench.initial(), 1)), retain=False)
        return time.monotonic() > stop_at

    agent = bench.agent()
    bench.hub.publish(bench.topic("plan"), encode_message(plan), retain=False)
    agent.run(until_finished=True, should_stop=should_stop)
    return found[0]


@pytest.mark.parametrize("rule", [TRAINED, FROZEN], ids=["trained front", "frozen front"])
def test_a_device_reports_the_same_scalars_either_way(
    bench: Bench, rule: StepRule, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What float32 rounds is far below the scalars; on a tiny model it may be nothing."""
    one_by_one = report_of(bench, rule, 1)
    counts: list[int] = []
    plain = BundleBackStack.losses

    def counted(stack: BundleBackStack, boundary: Any, batch: Any, count: int) -> list[float]:
        counts.append(count)
        return plain(stack, boundary, batch, count)

    monkeypatch.setattr(BundleBackStack, "losses", counted)
    shutil.rmtree(bench.root / "state")
    with caplog.at_level(logging.INFO):
        together = report_of(bench, rule, 4)
    at_once = 4 if rule.front_is_frozen else 3  # of three directions: six adapters at one activation, or three at each
    assert f"a call of the back block at split 2 takes {at_once} perturbed adapters" in caplog.text
    assert together.back_passes == one_by_one.back_passes == 3 * 6
    assert together.loss == pytest.approx(one_by_one.loss, rel=1e-5)
    single, many = (
        np.array(unpack_scalars(report.scalars, 3, rule.scalars_per_step)) for report in (one_by_one, together)
    )
    # Golden vectors come first. Three steps: three adapters of each sign where the front is trained, six at
    # one activation where it is frozen.
    assert counts[-6:] == 3 * ([4, 2] if rule.front_is_frozen else [3, 3])
    np.testing.assert_allclose(many, single, atol=2e-6 / rule.eps)
    assert np.abs(single).max() > 100 * 2e-6 / rule.eps


def stacks_of(folder: Path, bundle: Bundle, wanted: Any, free: int | None = GB) -> tuple[BackStacks, LoadedBundle]:
    """A device's choice, with so many bytes of free memory."""
    rows = folder / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"text": "a good film " * 4, "label": "good"}) for _ in range(4)))
    config = EdgeConfig("pi", "mqtt://unused", DataConfig(str(rows)), threads=1, forward=ForwardRules(wanted))
    return BackStacks(config, folder, lambda: free), LoadedBundle(bundle, config.data, Engines(threads=1))


def test_without_a_profile_one_runs_after_the_other(stacked: Bundle, tmp_path: Path) -> None:
    stacks, loaded = stacks_of(tmp_path, stacked, "auto")
    assert stacks.stack(loaded, 2, 4, 16) is None


def test_the_profile_chooses(stacked: Bundle, profile: Profile, tmp_path: Path) -> None:
    """Only where it was measured on this bundle and with these threads; the graph is kept from round to round."""
    stacks, loaded = stacks_of(tmp_path, stacked, "auto")
    (tmp_path / PROFILE_FILE).write_bytes(encode_profile(pays(profile, 4)))
    chosen = stacks.stack(loaded, 2, 4, 16)
    assert chosen is not None
    assert len(chosen.workspace) == 4
    assert stacks.stack(loaded, 2, 4, 16) is chosen
    assert stacks.stack(loaded, 1, 4, 16) is None, "nothing was measured at split 1"
    assert profile.measured is not None
    other_threads = msgspec.structs.replace(profile.measured, threads=7)
    for other in (
        msgspec.structs.replace(pays(profile, 4), measured=other_threads),
        msgspec.structs.replace(pays(profile, 4), bundle=msgspec.structs.replace(profile.bundle, sha256="ab" * 32)),
    ):
        (tmp_path / PROFILE_FILE).write_bytes(encode_profile(other))
        assert stacks.stack(loaded, 2, 4, 16) is None


def test_the_quickest_number_that_fits_is_chosen_where_it_pays(profile: Profile) -> None:
    assert choose_adapters(pays(profile, 8), 2, 4, 16, fit=256) == 8
    assert choose_adapters(pays(profile, 8), 2, 4, 16, fit=7) == 1
    assert choose_adapters(pays(profile, 3), 2, 4, 16, fit=256) == 1
    assert choose_adapters(pays(profile, 8), 3, 4, 16, fit=256) == 1
    far = StackTiming(batch_size=64, tokens=64, adapters=2, single_s=1.0, stacked_s=0.1, count=5)
    (stack,) = pays(profile, 8).stacks or []
    both = msgspec.structs.replace(stack, timings=[*stack.timings, far])
    two_shapes = msgspec.structs.replace(profile, stacks=[both])
    assert choose_adapters(two_shapes, 2, 6, 20, fit=256) == 8
    assert choose_adapters(two_shapes, 2, 50, 60, fit=256) == 2


def test_a_profile_measures_both_ways(profile: Profile, stacked: Bundle, tiny_bundle: Bundle) -> None:
    found = profile.stacks or []
    assert [stack.split for stack in found] == stacked.manifest.splits
    for stack in found:
        assert stack.note is None
        shapes = [(timing.batch_size, timing.tokens, timing.adapters) for timing in stack.timings]
        assert shapes == [(rows, tokens, count) for rows, tokens in ((1, 8), (4, 16)) for count in (2, 4, 8, 16)]
    plain = msgspec.structs.replace(profile, stacks=msgspec.UNSET)
    assert b"stacks" not in encode_profile(plain), "a profile of a bundle without them is what it was"
    assert decode_profile(encode_profile(profile)) == profile
    assert isinstance(find_stack(tiny_bundle.path, tiny_bundle.manifest, 2), NoStack)


def test_memory_bounds_a_call(stacked: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    graph = find_stack(stacked.path, stacked.manifest, 2)
    assert isinstance(graph, StackGraph)
    for adapters in (2, 5, 100):
        needed = call_bytes(graph, adapters, 4)
        assert adapters_that_fit(graph, 4, 2 * needed + 2) == adapters
        assert adapters_that_fit(graph, 4, 2 * needed - 2000) < adapters
    assert adapters_that_fit(graph, 4, 0) == adapters_that_fit(graph, 4, None) == 1
    stacks, loaded = stacks_of(tmp_path, stacked, 16, free=2 * call_bytes(graph, 3, 4) + 2)
    with caplog.at_level(logging.INFO):
        found = stacks.stack(loaded, 2, 4, 16)
    assert found is not None
    assert len(found.workspace) == 3
    assert "takes 3 perturbed adapters (adapters_per_call = 16)" in caplog.text
    stacks, loaded = stacks_of(tmp_path, stacked, 16, free=None)
    assert stacks.stack(loaded, 2, 4, 16) is None


def test_a_bundle_without_stack_graphs_is_used_as_before(
    tiny_bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stacks, loaded = stacks_of(tmp_path, tiny_bundle, 4)
    with caplog.at_level(logging.INFO):
        assert stacks.stack(loaded, 2, 4, 16) is None
    assert "adapters_per_call = 4 has no effect: the bundle has no stack graphs" in caplog.text
    with pytest.raises(BundleError, match="no stack graphs"):
        Engines(threads=1).make_back_stack(tiny_bundle, 2, 4)


def test_descriptions_that_cannot_be_used(stacked: Bundle, tmp_path: Path) -> None:
    """A newer one is left alone, another runtime has none, and a damaged one is an error that says what to do."""
    shutil.copytree(stacked.path, tmp_path / "bundle")
    bundle, path = open_bundle(tmp_path / "bundle"), tmp_path / "bundle" / STACK_FILE
    content = json.loads(path.read_bytes())
    other = find_stack(bundle.path, bundle.manifest, 2, "executorch")
    assert isinstance(other, NoStack)
    assert "for onnxruntime only, and the engine is executorch" in other.reason
    path.write_text(json.dumps(content | {"format_version": 2}))
    newer = find_stack(bundle.path, bundle.manifest, 2)
    assert isinstance(newer, NoStack)
    assert "format version 2" in newer.reason
    content["graphs"][1]["graph"]["file"] = "graphs/none.onnx"
    path.write_text(json.dumps(content))
    with pytest.raises(BundleError, match=r"names graphs/none\.onnx, which the manifest does not list"):
        find_stack(bundle.path, bundle.manifest, 2)
    path.write_text("{")
    with pytest.raises(BundleError, match=r"stack\.json cannot be read"):
        find_stack(bundle.path, bundle.manifest, 2)
