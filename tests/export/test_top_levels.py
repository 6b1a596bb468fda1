"""Top levels: all layers run, the last ones are trained. Loss and gradients against PyTorch, on both runtimes."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest
from executorch_cases import BOTH
from tiny_models import LAYERS
from training_parity import CAUSAL, HEAD, POSITIONS, PROMPT, batches, eager_gradients, eager_model, start

from edge_runtime.bundle.layers import layer_slices
from edge_runtime.bundle.layout import views
from edge_runtime.bundle.levels import Level, ascending, top_level
from edge_runtime.bundle.manifest import FORMAT_VERSION, PLAIN_VERSION
from edge_runtime.bundle.manifest_file import decode_manifest, encode_manifest
from edge_runtime.bundle.memory_need import parameter_bytes
from edge_runtime.engines.choose import Engines
from edge_runtime.engines.golden import check_golden
from edge_runtime.errors import BundleError, ConfigError, TrainingError
from edge_runtime.profiling.measure import ProfileOptions, measure_orders
from edge_runtime.profiling.worker import measure
from export.bundle.level_checks import default_splits, levels_of
from export.commands.lists import levels as levels_in
from export.errors import ExportError
from server.cli import main
from server.storage.result_folder import write_finished

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle

pytestmark = pytest.mark.timeout(600)
MIXED: tuple[Level, ...] = (1, "top:1", 2, "top:2", "top:3")
TOPS: tuple[Level, ...] = ("top:1", "top:2", "top:3")
FAST = [("bert", HEAD, "AB", False), pytest.param("llama", CAUSAL, "B", True, marks=pytest.mark.slow)]
LONG = [
    *[(kind, HEAD, "B", True) for kind in ("deberta", "distilbert", "mpnet", "roberta-classifier")],
    *[(f"{kind}-mlm", PROMPT, "AB", False) for kind in ("bert", "roberta", "deberta")],
    *[(kind, PROMPT, "AB", False) for kind in ("opt", "qwen2-tied", "qwen3", "llama")],
    ("qwen2", CAUSAL, "AB", True),
]
CASES = [*FAST, *[pytest.param(*case, marks=pytest.mark.long) for case in LONG]]


@pytest.mark.parametrize(("kind", "task", "train", "recompute"), CASES)
def test_gradients_agree_with_pytorch(
    tiny_export: Callable[..., Bundle], kind: str, task: str, train: str, recompute: bool, tmp_path: Path
) -> None:
    bundle = tiny_export(
        kind, task=task, splits=(2,), train=train, max_tokens=POSITIONS, levels=MIXED, recompute=recompute
    )
    theta = start(bundle)
    write_finished(bundle, theta, tmp_path / "adapter", {})
    model = eager_model(bundle, kind, tmp_path / "adapter")
    engine, slices = Engines(threads=1).make_training_engine(bundle), layer_slices(bundle.manifest)
    assert engine.levels == MIXED
    for batch in batches(bundle):
        expected_loss, expected = eager_gradients(model, bundle, range(LAYERS), batch)
        for trained in (1, 2, 3):
            last = range(LAYERS - trained, LAYERS)
            out = np.full_like(theta, np.nan)
            loss = engine.gradients(theta, last, batch, out, whole=True)
            assert abs(loss - expected_loss) < 1e-5 * max(1.0, expected_loss)
            found = views(out, bundle.manifest.parameters)
            for parameter in bundle.manifest.parameters:
                if parameter.layer >= LAYERS - trained:
                    wanted = expected[parameter.name]
                    largest = np.abs(wanted).max()
                    assert np.abs(found[parameter.name] - wanted).max() < 1e-4 * max(0.1, largest)
                    assert largest > 1e-4  # the gradients that are compared are not all zero
            for layer in range(LAYERS):
                assert np.isnan(out[slices.layers[layer]]).all() == (layer not in last)


@pytest.fixture(scope="module")
def bundle(tiny_export: Callable[..., Bundle]) -> Bundle:
    return tiny_export("bert", splits=(2,), train="AB", max_tokens=POSITIONS, levels=MIXED)


@pytest.mark.slow
def test_all_layers_at_the_top_are_all_layers(tiny_export: Callable[..., Bundle], bundle: Bundle) -> None:
    plain = tiny_export("bert", splits=(2,), train="AB", max_tokens=POSITIONS, levels=(1, 2, 3), recompute=True)
    theta, batch = start(bundle), batches(bundle)[0]
    outs = [np.zeros_like(theta), np.zeros_like(theta)]
    losses = [
        Engines(threads=1).make_training_engine(made).gradients(theta, range(LAYERS), batch, out, whole=whole)
        for made, out, whole in zip((bundle, plain), outs, (True, False), strict=True)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert np.abs(outs[0] - outs[1]).max() < 1e-6


def forward_names(bundle: Bundle, file: str, slot: int) -> tuple[set[str], set[str]]:
    """Return the values that a graph computes in a slot's forward pass, and those that it reads after the loss."""
    import onnx

    nodes = list(onnx.load(bundle.file(file)).graph.node)
    head = next(n for n, node in enumerate(nodes) if "loss" in node.output)
    made = {name for node in nodes for name in node.output if name.endswith(f"_forward_{slot}")}
    return made, made & {name for node in nodes[head:] for name in node.input}


def test_nothing_of_the_layers_below_is_kept(bundle: Bundle) -> None:
    """They run forward; the backward pass reads none of their values, and no gradient of theirs is computed."""
    graph = bundle.manifest.training_graph("top:1")
    for slot, kept in ((0, False), (1, False), (2, True)):
        made, read = forward_names(bundle, graph.file, slot)
        assert made
        assert bool(read) == kept
    assert {output.slot for output in graph.outputs if output.source is not None} == {None, 2}
    assert {tensor.slot for tensor in graph.inputs if tensor.role == "trainable"} == {None, 0, 1, 2}


def test_less_is_kept_the_fewer_layers_are_trained(bundle: Bundle) -> None:
    """The estimate of the memory follows; below it is what forward passes alone take of a layer at a time."""
    kept = [bundle.manifest.training_graph(top_level(trained)).activations for trained in (1, 2, 3)]
    rows = [found.further_row for found in kept if found is not None]
    assert len(rows) == 3
    assert rows[0] < 0.75 * rows[1] < 0.75 * rows[2]


def test_its_time_and_memory_are_measured(bundle: Bundle) -> None:
    """``covey-edge profile`` measures the graph as any other, under the level's name."""
    orders = measure_orders(bundle, ProfileOptions(threads=1, shapes=((2, 8),), seconds=0.01))
    assert [order.level for order in orders if order.kind == "train"] == list(MIXED)
    (order,) = (order for order in orders if order.level == "top:2")
    (found,) = measure(order)
    assert found.name == "train top:2"
    assert found.latencies[0].median_s > 0
    assert found.parameter_bytes == parameter_bytes(bundle.manifest.training_graph("top:2"))


@pytest.mark.slow
def test_a_bundle_with_top_levels_has_a_version_of_its_own(bundle: Bundle, tiny_export: Callable[..., Bundle]) -> None:
    """Covey of before says that it is too old; what it can read is written as it was."""
    assert bundle.manifest.format_version == FORMAT_VERSION
    assert decode_manifest(encode_manifest(bundle.manifest)) == bundle.manifest
    plain = tiny_export("bert", splits=(2,), train="AB", max_tokens=POSITIONS, levels=(1, 2, 3), recompute=True)
    assert plain.manifest.format_version == PLAIN_VERSION
    older = msgspec.structs.replace(bundle.manifest, format_version=PLAIN_VERSION)
    with pytest.raises(BundleError, match="a manifest of version 3 has no level top:1"):
        decode_manifest(encode_manifest(older))


def test_a_broken_top_graph_in_the_manifest_is_refused(bundle: Bundle) -> None:
    graph = bundle.manifest.training_graph("top:1")
    gradient = next(output for output in graph.outputs if output.slot == 2)
    without = msgspec.structs.replace(graph, outputs=[output for output in graph.outputs if output is not gradient])
    spoiled = [
        ("not one gradient for each tensor that it trains", without),
        ("level top:9 of a model with 3 layers", msgspec.structs.replace(graph, level="top:9")),
        ("has no place in slot 1", msgspec.structs.replace(graph, level=1)),
    ]
    for message, broken in spoiled:
        others = [g for g in bundle.manifest.graphs if g is not graph and g.level != broken.level]
        levels = ascending(g.level for g in (*others, broken) if g.level is not None)
        made = msgspec.structs.replace(bundle.manifest, graphs=[*others, broken], levels=levels)
        with pytest.raises(BundleError, match=message):
            decode_manifest(encode_manifest(made))


def test_a_level_that_the_bundle_lacks_is_named(tiny_export: Callable[..., Bundle], bundle: Bundle) -> None:
    plain = tiny_export("bert", splits=(2,), train="AB", max_tokens=POSITIONS, levels=(1, 2, 3), recompute=True)
    theta, batch = start(plain), batches(plain)[0]
    out = np.zeros_like(theta)
    with pytest.raises(BundleError, match=r"no training graph of level top:1; its levels are \[1, 2, 3\]"):
        Engines(threads=1).make_training_engine(plain).gradients(theta, [2], batch, out, whole=True)
    with pytest.raises(TrainingError, match=r"layers \[0\] are not the last 1 of 3"):
        Engines(threads=1).make_training_engine(bundle).gradients(theta, [0], batch, out, whole=True)


def test_the_flag_names_shares_and_numbers_of_layers() -> None:
    assert levels_in("--levels", ["1.0,0.5"]) == ([1.0, 0.5], [])
    assert levels_in("--levels", ["drop:1.0,0.5", "top:6,3,1"]) == ([1.0, 0.5], [6, 3, 1])
    assert levels_in("--levels", ["1.0,top:3"]) == ([1.0], [3])
    assert levels_of([1.0, 0.5], [6, 3, 1], 6) == ["top:1", 3, "top:3", 6, "top:6"]
    for text, message in (("top:a", "numbers"), ("bottom:1", "kind of level 'bottom'"), ("1.0,x", "shares")):
        with pytest.raises(ConfigError, match=message):
            levels_in("--levels", [text])
    for number in (0, 7):
        with pytest.raises(ExportError, match=f"top:{number}: the model has 6 layers"):
            levels_of([], [number], 6)


def test_a_folder_behind_the_flag_is_no_level(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["export", "--task", "classify-head", "--split", "1", "--levels", "1.0,0.5", str(tmp_path)])
    assert f"{tmp_path} is a folder: MODEL_DIR stands before --levels" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("executorch") is None, reason="needs the executorch package: pip install covey[executorch]"
)
@pytest.mark.parametrize(
    ("kind", "task", "given"),
    [
        ("bert", HEAD, ("top:1",)),
        *[
            pytest.param(kind, task, TOPS, marks=[pytest.mark.long, pytest.mark.timeout(1800)])
            for kind, task in (("deberta", HEAD), ("roberta-mlm", PROMPT), ("llama", PROMPT), ("opt", CAUSAL))
        ],
    ],
)
def test_executorch_agrees(tiny_export: Callable[..., Bundle], kind: str, task: str, given: tuple[str, ...]) -> None:
    bundle = tiny_export(kind, task=task, splits=(2,), levels=given, runtimes=BOTH)
    assert check_golden(bundle, Engines("executorch", 1)).gradients <= 1e-4
    theta, batch = start(bundle), batches(bundle)[0]
    engines = [Engines(runtime, 1).make_training_engine(bundle) for runtime in BOTH]
    assert [engine.levels for engine in engines] == [given] * 2
    for trained in range(1, len(given) + 1):
        outs = [np.full_like(theta, np.nan) for _ in engines]
        losses = [
            engine.gradients(theta, range(LAYERS - trained, LAYERS), batch, out, whole=True)
            for engine, out in zip(engines, outs, strict=True)
        ]
        assert abs(losses[0] - losses[1]) <= 1e-5 * max(1.0, losses[0])
        there = ~np.isnan(outs[0])
        assert (there == ~np.isnan(outs[1])).all()
        assert np.abs(outs[0][there]).max() > 1e-3
        assert np.abs(outs[0] - outs[1])[there].max() <= 1e-4 * max(0.1, np.abs(outs[0][there]).max())


def test_without_a_split_the_back_block_is_what_was_best_and_each_top_level_has_its_own() -> None:
    assert default_splits("classify-head", [], 6, norm_alone=False) == [6]
    assert default_splits("classify-head", [3, 6], 6, norm_alone=False) == [3, 6]
    assert default_splits("classify-prompt", [], 30, norm_alone=True) == [30]
    assert default_splits("classify-prompt", [], 30, norm_alone=False) == [20]
    assert default_splits("causal-lm", [7], 1, norm_alone=False) == [1]
