"""Training graphs that begin behind a split: gradients as of the whole model, descriptions, and what is refused."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest
from tiny_models import LAYERS
from training_parity import CAUSAL, HEAD, POSITIONS, PROMPT, batches, start

from edge_runtime.bundle.behind import BEHIND_FILE, BEHIND_VERSION, Behind, encode_behind, find_behind
from edge_runtime.bundle.folder import Bundle
from edge_runtime.bundle.levels import Level, trained_layers
from edge_runtime.bundle.memory_need import graph_need, level_need
from edge_runtime.engines.bundle_engine import BundleFront
from edge_runtime.engines.choose import Engines
from edge_runtime.engines.golden import check_golden
from edge_runtime.errors import BundleError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_runtime.bundle.manifest import Graph

pytestmark = pytest.mark.timeout(600)
LEVELS: tuple[Level, ...] = (1, "top:1", "top:2", "top:3")
FAST = [("bert", HEAD, "AB", False), pytest.param("llama", CAUSAL, "B", True, marks=pytest.mark.slow)]
LONG = [
    *[(kind, HEAD, "B", True) for kind in ("deberta", "distilbert", "mpnet", "roberta-classifier")],
    *[(f"{kind}-mlm", PROMPT, "AB", False) for kind in ("bert", "deberta")],
    *[(kind, PROMPT, "AB", False) for kind in ("opt", "qwen2-tied", "qwen3", "llama")],
    ("qwen2", CAUSAL, "AB", True),
]
CASES = [*FAST, *[pytest.param(*case, marks=pytest.mark.long) for case in LONG]]


def exported(tiny_export: Callable[..., Bundle], kind: str, task: str, train: str, recompute: bool) -> Bundle:
    options = {"task": task, "train": train, "recompute": recompute, "max_tokens": POSITIONS}
    return tiny_export(kind, splits=(1, 2), levels=LEVELS, **options)


@pytest.fixture(scope="module")
def bundle(tiny_export: Callable[..., Bundle]) -> Bundle:
    return exported(tiny_export, "bert", HEAD, "AB", recompute=False)


@pytest.mark.parametrize(("kind", "task", "train", "recompute"), CASES)
def test_gradients_behind_a_split_are_those_of_the_whole_model(
    tiny_export: Callable[..., Bundle], kind: str, task: str, train: str, recompute: bool
) -> None:
    bundle = exported(tiny_export, kind, task, train, recompute)
    theta, engines = start(bundle), Engines(threads=1)
    engine = engines.make_training_engine(bundle)
    found = {split: find_behind(bundle.path, bundle.manifest, split) for split in (1, 2)}
    assert {split: list(graphs) for split, graphs in found.items()} == {1: ["top:1", "top:2"], 2: ["top:1"]}
    for split, graphs in found.items():
        front = BundleFront(bundle, split, engines.opener())
        np.copyto(front.front_workspace, theta[: front.front_workspace.size])
        for level, graph in graphs.items():
            last = range(LAYERS - trained_layers(level), LAYERS)
            for batch in batches(bundle):
                wanted, out = np.zeros_like(theta), np.zeros_like(theta)
                loss = engine.gradients(theta, last, batch, wanted, whole=True)
                boundary = front.front_arrays(batch)
                behind = engine.gradients_behind(graph, theta, last, batch, boundary, out)
                assert abs(behind - loss) < 1e-5 * max(1.0, loss)
                assert np.abs(out - wanted).max() < 1e-5 * max(1.0, np.abs(wanted).max())
                assert np.abs(wanted).max() > 1e-4


def test_a_graph_behind_a_split_reads_and_holds_less(bundle: Bundle) -> None:
    manifest = bundle.manifest
    (graph,) = find_behind(bundle.path, manifest, 2).values()
    whole = manifest.training_graph("top:1")
    read = {tensor.source for tensor in graph.inputs}
    assert read < {tensor.source for tensor in whole.inputs} | {"attention_mask"} | {
        tensor.source for tensor in graph.inputs if tensor.role == "boundary"
    }
    assert not any(tensor.slot is not None and tensor.slot < 2 for tensor in graph.inputs)
    need, of_whole = graph_need(manifest, graph), level_need(manifest, "top:1")
    assert need.bytes_needed < 0.75 * of_whole.bytes_needed
    assert need.level == "top:1"


def test_golden_vectors_cover_the_graphs_behind_a_split(bundle: Bundle, tmp_path: Path) -> None:
    """The graph of another level in the place of one is found."""
    check_golden(bundle)
    copy = Bundle(shutil.copytree(bundle.path, tmp_path / "copy"), bundle.manifest, bundle.sha256)
    (graph,) = find_behind(bundle.path, bundle.manifest, 2).values()
    other = find_behind(bundle.path, bundle.manifest, 1)["top:1"]
    write(copy, [msgspec.structs.replace(graph, inputs=_crossed(graph))])
    assert other.file != graph.file
    with pytest.raises(BundleError, match="golden vectors differ"):
        check_golden(copy)


def _crossed(graph: Graph) -> list[object]:
    """The inputs of a graph, with two weights of one shape in each other's place."""
    inputs = list(graph.inputs)
    pairs = [
        (a, b)
        for a in range(len(inputs))
        for b in range(a)
        if inputs[a].role == inputs[b].role == "weight"
        and inputs[a].shape == inputs[b].shape
        and inputs[a].slot == inputs[b].slot
        and len(inputs[a].shape) == 2
    ]
    a, b = pairs[0]
    sources = inputs[a].source, inputs[b].source
    inputs[a] = msgspec.structs.replace(inputs[a], source=sources[1])
    inputs[b] = msgspec.structs.replace(inputs[b], source=sources[0])
    return inputs


def write(bundle: Bundle, graphs: list[Graph], version: int = BEHIND_VERSION) -> None:
    (bundle.path / BEHIND_FILE).write_bytes(encode_behind(Behind(version, graphs)))


def test_a_newer_description_and_another_runtime_mean_none(bundle: Bundle, tmp_path: Path) -> None:
    copy = Bundle(shutil.copytree(bundle.path, tmp_path / "copy"), bundle.manifest, bundle.sha256)
    assert find_behind(bundle.path, bundle.manifest, 2, "executorch") == {}
    write(copy, [], BEHIND_VERSION + 1)
    assert find_behind(copy.path, copy.manifest, 2) == {}


def test_a_wrong_description_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    copy = Bundle(shutil.copytree(bundle.path, tmp_path / "copy"), bundle.manifest, bundle.sha256)
    (graph,) = find_behind(bundle.path, bundle.manifest, 2).values()
    boundary = next(tensor for tensor in graph.inputs if tensor.role == "boundary")
    others = [tensor for tensor in graph.inputs if tensor is not boundary]
    low = [msgspec.structs.replace(t, slot=0) if t.slot == 2 and t.role == "weight" else t for t in graph.inputs]
    wrong = [
        ("which the manifest does not list", msgspec.structs.replace(graph, file="graphs/none.onnx")),
        ("is no training graph of a top level", msgspec.structs.replace(graph, level=1)),
        ("does not train behind split 2", msgspec.structs.replace(graph, level="top:2")),
        ("does not train behind split 3", msgspec.structs.replace(graph, split=3)),
        ("does not take what the front of split 2 gives", msgspec.structs.replace(graph, inputs=others)),
        ("reads a layer of the front", msgspec.structs.replace(graph, inputs=low)),
        ("not one gradient for each tensor", msgspec.structs.replace(graph, outputs=graph.outputs[:2])),
    ]
    for said, changed in wrong:
        write(copy, [changed])
        with pytest.raises(BundleError, match=said):
            find_behind(copy.path, copy.manifest, 2)
    (copy.path / BEHIND_FILE).write_bytes(b"{")
    with pytest.raises(BundleError, match=BEHIND_FILE):
        find_behind(copy.path, copy.manifest, 2)
    (copy.path / BEHIND_FILE).unlink()
    with pytest.raises(BundleError, match="cannot be read"):
        find_behind(copy.path, copy.manifest, 2)
