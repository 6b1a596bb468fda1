"""Back blocks for many adapters in one call: the same losses as one at a time and as PyTorch's, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from tiny_exports import TinyExport

from edge_runtime.bundle.folder import open_bundle
from edge_runtime.bundle.stack import STACK_FILE, StackGraph
from edge_runtime.data.batch import pad
from edge_runtime.engines.choose import Engines
from edge_runtime.engines.golden import golden_adapter
from edge_runtime.forward_only.directions import step_seeds
from edge_runtime.forward_only.step import spzo_step
from edge_runtime.protocol.step_rule import StepRule
from export.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle

BATCH = pad([[2, 8, 9, 10, 3], [2, 30, 3], [2, 11, 12, 13, 14, 15, 16, 3]], [0, 1, 1], 0)
ENGINES = Engines(threads=1)
SLOW = pytest.mark.slow
KINDS = [
    pytest.param("bert", {"splits": (1, 2, 3), "train": "AB"}, id="bert with A and B"),
    pytest.param("llama-classifier", {}, id="last token", marks=SLOW),
    pytest.param("llama", {"task": "classify-prompt"}, id="prompt", marks=SLOW),
    pytest.param("mpnet", {"splits": (2,)}, id="mpnet", marks=SLOW),
    pytest.param("roberta-classifier", {"splits": (2,)}, id="two layers of a head", marks=SLOW),
    pytest.param("bert-mlm", {"task": "classify-prompt", "splits": (2,)}, id="masked", marks=SLOW),
]


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_stacked_losses_are_those_of_one_adapter_at_a_time(
    tiny_export: Callable[..., Bundle], kind: str, options: dict[str, object]
) -> None:
    """Each of five adapters gets its own loss, at every number of adapters in a call."""
    bundle = tiny_export(kind, stack=True, **options)
    theta = golden_adapter(bundle.initial_adapter(), bundle.manifest.golden)
    rng = np.random.Generator(np.random.PCG64(1))
    for split in bundle.manifest.splits:
        engine, stack = ENGINES.make_engine(bundle, split), ENGINES.make_back_stack(bundle, split, 5)
        cut = engine.front_workspace.size
        engine.front_workspace[:] = theta[:cut]
        boundary, singly = engine.front(BATCH), []
        for row in stack.workspace:
            row[:] = theta[cut:] + rng.normal(0, 0.05, row.size)
            engine.back_workspace[:] = row
            singly.append(engine.back(boundary, BATCH))
        assert len({round(loss, 4) for loss in singly}) > 2, "adapters that all give the same would show nothing"
        for count in (1, 2, 5):
            assert stack.losses(boundary, BATCH, count) == pytest.approx(singly[:count], rel=1e-6)


@pytest.mark.parametrize("variant", ["nested", "clean"])
@pytest.mark.parametrize("difference", ["central", "forward"])
def test_a_step_with_a_stack_is_the_step_without_one(
    tiny_export: Callable[..., Bundle], variant: str, difference: str
) -> None:
    """Losses agree to 1e-6, scalars to what that leaves of a difference, whatever number a call takes."""
    bundle = tiny_export("bert", stack=True, splits=(1, 2, 3), train="AB")
    theta, engine = golden_adapter(bundle.initial_adapter(), bundle.manifest.golden), ENGINES.make_engine(bundle, 2)
    rule = StepRule(variant=variant, difference=difference, front_perturbations=2, back_perturbations=3, eps=0.05)
    seeds = step_seeds(rule, 1, 0, "device", 0)
    one_by_one = spzo_step(engine, theta, BATCH, rule, seeds)
    for adapters in (2, 4, 64):
        stack = ENGINES.make_back_stack(bundle, 2, adapters)
        found = spzo_step(engine, theta, BATCH, rule, seeds, stack=stack)
        assert found.loss == pytest.approx(one_by_one.loss, rel=1e-6)
        assert (found.front_passes, found.back_passes) == (one_by_one.front_passes, one_by_one.back_passes)
        loss_error = 2e-6 * one_by_one.loss
        assert np.abs(found.scalars - one_by_one.scalars).max() <= loss_error / rule.eps
    assert np.abs(one_by_one.scalars).max() > 100 * loss_error / rule.eps


def test_the_first_layer_behind_the_split_is_shared(tiny_export: Callable[..., Bundle]) -> None:
    """Products of base weights with what crosses the split are computed for the rows of one batch, not of P."""
    import onnx

    bundle = tiny_export("bert", stack=True, splits=(1, 2, 3), train="AB")
    found = ENGINES.find_stack(bundle, 2)
    assert isinstance(found, StackGraph)
    graph = onnx.load(bundle.file(found.graph.file)).graph
    boundary = {tensor.name for tensor in found.graph.inputs if tensor.role == "boundary"}
    producers = {node.input[0] for node in graph.node if node.op_type == "MatMul"}
    assert boundary & producers, "query, key and value read the boundary itself"
    head = ENGINES.find_stack(bundle, 3)
    assert isinstance(head, StackGraph)
    products = [node for node in onnx.load(bundle.file(head.graph.file)).graph.node if node.op_type == "MatMul"]
    assert len(products) == 1, "the head alone is one batched product"


def test_a_stack_graph_that_mixes_adapters_up_is_found(tiny_export: Callable[..., Bundle], tmp_path: Path) -> None:
    """A graph that gives every adapter the first one's loss does not pass the golden vectors."""
    import shutil

    import onnx

    from edge_runtime.engines.golden import measure_parity

    source = tiny_export("bert", stack=True, splits=(1, 2, 3), train="AB")
    assert measure_parity(source).loss < source.manifest.golden.tolerance
    shutil.copytree(source.path, tmp_path / "bundle")
    bundle = open_bundle(tmp_path / "bundle")
    path = bundle.file("graphs/back_stack_3.onnx")
    model = onnx.load(path)
    last = model.graph.node[-1]
    result, last.output[0] = last.output[0], "all_losses"
    model.graph.initializer.append(onnx.helper.make_tensor("firsts", onnx.TensorProto.INT64, [3], [0, 0, 0]))
    model.graph.node.append(onnx.helper.make_node("Gather", ["all_losses", "firsts"], [result], axis=0))
    onnx.save(model, path)
    assert measure_parity(bundle).loss > bundle.manifest.golden.tolerance


def test_without_the_option_a_bundle_has_none(tiny_bundle: Bundle) -> None:
    assert not (tiny_bundle.path / STACK_FILE).exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"task": "causal-lm", "kind": "llama"}, "summed up in chunks"),
        ({"base": "int4", "kind": "bert"}, "lay out the quantised weights a second time"),
        ({"train": "full", "kind": "bert"}, "as many models as adapters"),
    ],
)
def test_what_cannot_be_stacked_is_refused_before_anything_is_loaded(
    options: dict[str, object], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=reason):
        TinyExport(**options, stack=True).write(tmp_path / "models", tmp_path / "bundle")


@SLOW
def test_a_trained_tensor_that_rows_share_is_refused(tmp_path: Path) -> None:
    """DeBERTa applies its query to relative positions, which all rows share."""
    with pytest.raises(ExportError, match="applied to something that rows share"):
        TinyExport("deberta", stack=True, splits=(1,)).write(tmp_path / "models", tmp_path / "bundle")
