"""Tests loss and every gradient of training graphs against PyTorch, for every level and for any layers."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest
from tiny_models import LAYERS
from training_parity import CAUSAL, HEAD, POSITIONS, PROMPT, batches, eager_gradients, eager_model, start

from edge_runtime.bundle.folder import open_bundle
from edge_runtime.bundle.layers import layer_slices, source_of
from edge_runtime.bundle.layout import views
from edge_runtime.data.batch import pad
from edge_runtime.engines.choose import Engines
from edge_runtime.engines.golden import check_golden, training_layers
from edge_runtime.errors import BundleError, TrainingError
from edge_runtime.files.tensor_file import map_tensors
from export.bundle.level_checks import level_counts
from export.errors import ExportError
from server.storage.result_folder import write_finished

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle

LEVELS = (1, 2, 3)
CHOICES = [[2], [0, 2], [1, 2], [0, 1, 2]]
FAST = [("bert", HEAD, "AB", True), pytest.param("llama", CAUSAL, "B", False, marks=pytest.mark.slow)]
LONG = [
    *[(kind, HEAD, "B", True) for kind in ("deberta", "distilbert", "mpnet", "roberta-classifier")],
    *[(f"{kind}-mlm", PROMPT, "AB", False) for kind in ("bert", "roberta", "deberta", "distilbert", "mpnet")],
    *[(kind, PROMPT, "AB", True) for kind in ("opt", "opt-narrow", "qwen2-tied", "qwen3")],
    *[(kind, CAUSAL, "AB", True) for kind in ("opt-tied", "qwen2")],
    ("llama", HEAD, "B", True),
]
pytestmark = pytest.mark.timeout(400)  # an export with levels takes seconds, and minutes on a busy machine
CASES = [*FAST, *[pytest.param(*case, marks=pytest.mark.long) for case in LONG]]


@pytest.mark.parametrize(("kind", "task", "train", "recompute"), CASES)
def test_gradients_agree_with_pytorch(
    tiny_export: Callable[..., Bundle], kind: str, task: str, train: str, recompute: bool, tmp_path: Path
) -> None:
    bundle = tiny_export(
        kind, task=task, splits=(2,), train=train, max_tokens=POSITIONS, levels=LEVELS, recompute=recompute
    )
    theta = start(bundle)
    write_finished(bundle, theta, tmp_path / "adapter", {})
    model = eager_model(bundle, kind, tmp_path / "adapter")
    engine = Engines(threads=1).make_training_engine(bundle)
    assert engine.levels == LEVELS
    slices = layer_slices(bundle.manifest)
    for layers, batch in itertools.product(CHOICES, batches(bundle)):
        out = np.full_like(theta, np.nan)
        loss = engine.gradients(theta, layers, batch, out)
        expected_loss, expected = eager_gradients(model, bundle, layers, batch)
        assert abs(loss - expected_loss) < 1e-5 * max(1.0, expected_loss)
        found = views(out, bundle.manifest.parameters)
        for parameter in bundle.manifest.parameters:
            if parameter.layer in layers or not 0 <= parameter.layer < LAYERS:
                wanted = expected[parameter.name]
                largest = np.abs(wanted).max()
                # Narrow embeddings have small gradients, which are compared relative to their own size.
                tolerance, least = (1e-2 * largest, 1e-7) if kind == "opt-narrow" else (1e-4 * max(0.1, largest), 1e-4)
                assert np.abs(found[parameter.name] - wanted).max() < tolerance
                assert largest > least  # the gradients that are compared are not all zero
        for layer in range(LAYERS):
            assert np.isnan(out[slices.layers[layer]]).all() == (layer not in layers)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "task", "recompute"),
    [
        ("bert", HEAD, True),
        pytest.param("llama", CAUSAL, False, marks=pytest.mark.slow),
        pytest.param("deberta", HEAD, False, marks=pytest.mark.long),
        pytest.param("opt", PROMPT, True, marks=pytest.mark.long),
    ],
)
def test_rescaled_residuals_agree_with_pytorch(
    tiny_export: Callable[..., Bundle], kind: str, task: str, recompute: bool, tmp_path: Path
) -> None:
    given = {"task": task, "splits": (2,), "train": "AB", "max_tokens": POSITIONS, "levels": LEVELS}
    bundle = tiny_export(kind, **given, recompute=recompute, rescale=True)
    theta, batch = start(bundle), batches(bundle)[0]
    write_finished(bundle, theta, tmp_path / "adapter", {})
    model, engine = eager_model(bundle, kind, tmp_path / "adapter"), Engines(threads=1).make_training_engine(bundle)
    for layers, scales in (([2], [3.0]), ([0, 2], [1.5, 1.5]), ([0, 1, 2], [2.0, 1.25, 0.5]), ([1, 2], None)):
        out = np.zeros_like(theta)
        loss = engine.gradients(theta, layers, batch, out, scales)
        expected_loss, expected = eager_gradients(model, bundle, layers, batch, scales or ())
        assert abs(loss - expected_loss) < 1e-5 * max(1.0, expected_loss)
        found = views(out, bundle.manifest.parameters)
        for name, wanted in expected.items():
            assert np.abs(found[name] - wanted).max() < 1e-4 * max(0.1, np.abs(wanted).max())
        if scales is not None:
            assert abs(loss - engine.gradients(theta, layers, batch, out)) > 1e-4  # the scales change the loss


def test_a_bundle_without_scales_refuses_them(bundle: Bundle) -> None:
    theta = bundle.initial_adapter()
    with pytest.raises(BundleError, match="do not rescale residuals"):
        Engines(threads=1).make_training_engine(bundle).gradients(theta, [1], batches(bundle)[0], theta.copy(), [2.0])


@pytest.fixture(scope="module")
def bundle(tiny_export: Callable[..., Bundle]) -> Bundle:
    return tiny_export("bert", splits=(2,), train="AB", max_tokens=POSITIONS, levels=LEVELS, recompute=True)


def test_slices_partition_the_layout(bundle: Bundle) -> None:
    slices = layer_slices(bundle.manifest)
    count = np.zeros(bundle.manifest.parameters[-1].stop, dtype=int)
    for part in (*slices.layers, *slices.rest):
        count[part] += 1
    assert (count == 1).all()
    for parameter in bundle.manifest.parameters:
        part = slices.layers[parameter.layer] if parameter.layer < LAYERS else slices.rest[-1]
        assert part.start <= parameter.offset < parameter.stop <= part.stop


@pytest.mark.parametrize("level", LEVELS)
def test_only_active_layers_are_bound(bundle: Bundle, level: int) -> None:
    """Every bound tensor belongs to an active layer or to none, and each layer binds the same number of bytes."""
    graph = bundle.manifest.training_graph(level)
    weights = map_tensors(bundle.file(bundle.manifest.weights_file))
    per_layer = sum(t.nbytes for name, t in weights.items() if ".layer.0." in name)
    for layers in itertools.combinations(range(LAYERS), level):
        engine = Engines(threads=1).make_training_engine(bundle)
        bound = engine.bound(layers)
        outside = sum(t.nbytes for name, t in weights.items() if name in bound and ".layer." not in name)
        assert {n for n in bound if ".layer." in n} == {
            n for n in weights if any(f".layer.{layer}." in n for layer in layers)
        }
        assert sum(weights[n].nbytes for n in bound) == outside + level * per_layer
    frozen = [t for t in graph.inputs if t.role in ("weight", "frozen")]
    assert sum(4 * math.prod(map(int, t.shape)) for t in frozen) == outside + level * per_layer


@pytest.mark.slow
def test_recomputing_keeps_hidden_states_alone(tiny_export: Callable[..., Bundle], bundle: Bundle) -> None:
    """Of a layer's forward pass, the backward pass reads only hidden states and values computed from them alone."""
    import onnx

    plain = tiny_export("llama", task=CAUSAL, splits=(2,), max_tokens=POSITIONS, levels=LEVELS)
    for level in (2, 3):
        assert bundle.manifest.training_graph(level).recomputes
        assert not plain.manifest.training_graph(level).recomputes
        for made, least, most in ((bundle, 0, 3 * (level - 1)), (plain, 10, 1000)):
            graph = onnx.load(made.file(f"graphs/train_{level}.onnx")).graph
            assert least <= len(kept(graph)) <= most


@pytest.mark.parametrize("level", LEVELS)
def test_inputs_stand_in_the_order_in_which_nodes_read_them(bundle: Bundle, level: int) -> None:
    """In the order of a set, which differs between processes, equal exports would be different bundles."""
    import onnx

    graph = onnx.load(bundle.file(f"graphs/train_{level}.onnx")).graph
    inputs = [value.name for value in graph.input]
    read = dict.fromkeys(name for node in graph.node for name in node.input if name in inputs)
    assert inputs == list(read)


@pytest.mark.slow
def test_recomputing_changes_no_gradient(tiny_export: Callable[..., Bundle], bundle: Bundle) -> None:
    plain = tiny_export("bert", splits=(2,), train="AB", max_tokens=POSITIONS, levels=LEVELS)
    theta, batch = start(bundle), batches(bundle)[0]
    for layers in ([0, 2], [0, 1, 2]):
        outs = [np.zeros_like(theta), np.zeros_like(theta)]
        made = zip((bundle, plain), outs, strict=True)
        losses = [
            Engines(threads=1).make_training_engine(each).gradients(theta, layers, batch, out) for each, out in made
        ]
        assert losses[0] == losses[1]
        assert np.abs(outs[0] - outs[1]).max() < 1e-6


def kept(graph: object) -> set[str]:
    """Return the values of the layers below the last one that are computed before the loss and read after it."""
    nodes = list(graph.node)  # type: ignore[attr-defined]
    head = next(n for n, node in enumerate(nodes) if "loss" in node.output)
    top = max(
        int(name.split("_forward_")[1])
        for node in nodes
        for name in node.output
        if name.endswith(tuple(f"_forward_{slot}" for slot in range(LAYERS)))
    )
    made = {name for node in nodes[:head] for name in node.output if "_forward_" in name or name.startswith("into_")}
    made = {name for name in made if not name.endswith(f"_forward_{top}")}
    return made & {name for node in nodes[head:] for name in node.input}


def test_golden_gradients_are_checked(bundle: Bundle, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    assert 0 < check_golden(bundle).gradients < 1e-4
    shutil.copytree(bundle.path, tmp_path / "copy")
    copy = open_bundle(tmp_path / "copy")
    path = copy.file(copy.manifest.golden.file)
    tensors = load_file(path)
    tensors["train_2.gradients"][layer_slices(copy.manifest).layers[training_layers(2, LAYERS)[0]].start] += 0.01
    save_file(tensors, path)
    with pytest.raises(BundleError, match="gradients"):
        check_golden(copy)
    del tensors["train_2.gradients"]
    save_file(tensors, path)
    with pytest.raises(BundleError, match=r"does not hold 'train_2\.gradients'"):
        check_golden(copy)


def test_wrong_choices_of_layers_are_refused(bundle: Bundle, tiny_export: Callable[..., Bundle]) -> None:
    engine, theta = Engines(threads=1).make_training_engine(bundle), bundle.initial_adapter()
    out, batch = np.zeros_like(theta), batches(bundle)[0]
    for layers in ([2, 1], [1, 1], [0, 3], [-1, 0]):
        with pytest.raises(TrainingError, match="in ascending order"):
            engine.gradients(theta, layers, batch, out)
    with pytest.raises(BundleError, match=r"no training graph with 4 active layers; its levels are \[1, 2, 3\]"):
        engine.gradients(theta, [0, 1, 2, 3], batch, out)
    with pytest.raises(TrainingError, match="failed on a batch"):
        engine.gradients(theta, [1], pad([[10_000, 3]], [0], 0), out)


@pytest.mark.parametrize("n_layers", [1, 3, 6, 12, 30])
def test_golden_layers_are_a_choice(n_layers: int) -> None:
    for level in range(1, n_layers + 1):
        layers = training_layers(level, n_layers)
        assert len(set(layers)) == level
        assert layers == sorted(layers)
        assert 0 <= layers[0] <= layers[-1] == n_layers - 1


def test_shares_become_counts() -> None:
    assert level_counts([1.0, 0.75, 0.5, 0.33, 0.01], 6) == [1, 2, 3, 4, 6]
    for share in (0.0, -1.0, 1.1, float("nan")):
        with pytest.raises(ExportError, match="active layers"):
            level_counts([share], 6)


@pytest.mark.slow
def test_layers_that_are_not_alike_are_refused(tiny_export: Callable[..., Bundle]) -> None:
    with pytest.raises(ExportError, match="layer 0 is not trained like the others"):
        tiny_export("bert", splits=(2,), layers=(1, 2), levels=(2,))
    with pytest.raises(ExportError, match="as large as the model"):
        tiny_export("bert", splits=(2,), train="full", levels=(2,))


def test_a_broken_training_graph_in_the_manifest_is_refused(bundle: Bundle) -> None:
    from edge_runtime.bundle.manifest_file import decode_manifest, encode_manifest

    manifest = bundle.manifest
    graph = manifest.training_graph(2)
    slotted = next(i for i in graph.inputs if i.slot is not None and i.role == "trainable")

    def with_input(**changes: object) -> object:
        inputs = [msgspec.structs.replace(i, **changes) if i is slotted else i for i in graph.inputs]
        return msgspec.structs.replace(graph, inputs=inputs)

    spoiled = [
        ("has no place in slot 2", with_input(slot=2)),
        ("has no place in slot 0", with_input(slot=0, source="elsewhere")),
        ("is not in the layout", with_input(source="elsewhere.{layer}", slot=0)),
        ("not one gradient for each", msgspec.structs.replace(graph, outputs=graph.outputs[:-1])),
        ("first output is not the loss", msgspec.structs.replace(graph, outputs=graph.outputs[1:])),
        ("levels are not those", msgspec.structs.replace(graph, level=1)),
    ]
    for message, broken in spoiled:
        graphs = [broken if g is graph else g for g in manifest.graphs]
        with pytest.raises(BundleError, match=message):
            decode_manifest(encode_manifest(msgspec.structs.replace(manifest, graphs=graphs)))
    assert source_of(slotted, [0, 2]) in {p.name for p in manifest.parameters}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--checkpoint"], "--checkpoint is about training graphs"),
        (["--rescale"], "--rescale is about training graphs"),
        (["--levels", "all"], "is not a list of shares"),
    ],
)
def test_flags_that_make_no_sense(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    from server.cli import main

    command = ["export", "nowhere", "--task", "classify-head", "--labels", "a,b", "--split", "1", "--out", "nowhere"]
    assert main([*command, *flags]) == 3
    assert message in capsys.readouterr().err
