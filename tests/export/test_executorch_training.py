"""Tests loss and every gradient on ExecuTorch against ONNX Runtime, which other tests compare with PyTorch."""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest
from executorch_cases import BOTH, CAUSAL, HEAD, PROMPT, batch_of
from fleets import write_job
from tiny_models import LAYERS, reviews, write_rows

from edge_runtime.agent.birth import capability
from edge_runtime.agent.config import EdgeConfig
from edge_runtime.agent.loaded_bundle import LoadedBundle
from edge_runtime.bundle.layers import layer_slices
from edge_runtime.bundle.manifest_file import decode_manifest, encode_manifest
from edge_runtime.data.batch import pad
from edge_runtime.data.examples import DataConfig
from edge_runtime.engines.choose import Engines
from edge_runtime.engines.golden import check_golden, golden_adapter
from edge_runtime.errors import BundleError, TrainingError
from server.serving.loaded_job import load_job
from server.simulation.in_process import run_in_process

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.bundle.folder import Bundle

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("executorch") is None, reason="needs the executorch package: pip install covey[executorch]"
)
LONG = [
    ("bert", HEAD, (2, 3)),
    *[(kind, HEAD, (2,)) for kind in ("deberta", "distilbert", "mpnet", "roberta")],
    ("roberta-mlm", PROMPT, (2,)),
    *[(kind, PROMPT, (2,)) for kind in ("llama", "opt", "qwen2-tied", "qwen3")],
    *[(kind, CAUSAL, (2,)) for kind in ("opt", "llama", "qwen2")],
]
CASES = [
    pytest.param("bert", HEAD, (1,), marks=pytest.mark.timeout(600)),
    *[pytest.param(*case, marks=[pytest.mark.long, pytest.mark.timeout(1800)]) for case in LONG],
]


@pytest.mark.parametrize(("kind", "task", "levels"), CASES)
def test_gradients_agree(tiny_export: Callable[..., Bundle], kind: str, task: str, levels: tuple[int, ...]) -> None:
    """Gradients of any layers agree at sizes that were not traced; the export refuses products on slow kernels."""
    bundle = tiny_export(kind, task=task, splits=(2,), levels=levels, runtimes=BOTH)
    assert check_golden(bundle, Engines("executorch", 1)).gradients <= 1e-4
    golden = msgspec.structs.replace(bundle.manifest.golden, seed=78, scale=0.1)
    theta, batch = golden_adapter(bundle.initial_adapter(), golden), batch_of(bundle)
    engines = [Engines(runtime, 1).make_training_engine(bundle) for runtime in BOTH]
    slices = layer_slices(bundle.manifest)
    assert [engine.levels for engine in engines] == [levels] * 2
    for layers in (choice for level in levels for choice in itertools.combinations(range(LAYERS), level)):
        outs = [np.full_like(theta, np.nan) for _ in engines]
        losses = [engine.gradients(theta, layers, batch, out) for engine, out in zip(engines, outs, strict=True)]
        assert abs(losses[0] - losses[1]) <= 1e-5 * max(1.0, losses[0])
        there = ~np.isnan(outs[0])
        assert (there == ~np.isnan(outs[1])).all()
        assert np.abs(outs[0][there]).max() > 1e-3  # the gradients that are compared are not all zero
        assert np.abs(outs[0] - outs[1])[there].max() <= 1e-4 * max(0.1, np.abs(outs[0][there]).max())
        for layer in range(LAYERS):
            assert there[slices.layers[layer]].all() == (layer in layers)
        assert sorted(engines[0].bound(layers)) == sorted(engines[1].bound(layers))


@pytest.fixture(scope="module")
def bundle(tiny_export: Callable[..., Bundle]) -> Bundle:
    return tiny_export("bert", splits=(2,), levels=(1,), runtimes=BOTH)


def device(folder: Path, index: int, **fields: str) -> EdgeConfig:
    data = DataConfig(str(write_rows(reviews(8 + index, seed=index), folder / f"{index}.jsonl")))
    return EdgeConfig(
        name=f"device-{index}",
        broker="mqtt://unused",
        data=data,
        threads=1,
        state_dir=str(folder / f"{index}"),
        **fields,
    )


def test_devices_on_either_engine_backpropagate_in_one_job(bundle: Bundle, tmp_path: Path) -> None:
    configs = [device(tmp_path, index, engine=engine) for index, engine in enumerate(BOTH)]
    path = write_job(tmp_path, rounds=2, min_devices=2, eval_every=2, stld={"steps": 2, "batch_size": 4})
    fitted, _ = load_job(path, bundle.path)
    result = run_in_process(fitted, bundle, tmp_path / "server", configs)
    assert result["rounds"] == 2
    for config in configs:  # forward-only devices never write deltas
        assert list((Path(config.state_dir) / "deltas").iterdir())


def test_a_bundle_without_training_graphs_for_the_engine(bundle: Bundle, tmp_path: Path) -> None:
    """The device announces itself as forward-only; asked for a training graph, the manifest says why it has none."""
    graphs = [g for g in bundle.manifest.graphs if (g.kind, g.runtime) != ("train", "executorch")]
    without = msgspec.structs.replace(bundle.manifest, graphs=graphs)
    assert decode_manifest(encode_manifest(without)).levels == [1]
    old = type(bundle)(bundle.path, without, bundle.sha256)
    kinds = [
        capability(config, LoadedBundle(made, config.data, Engines(config.engine)), None).kind
        for config in (device(tmp_path, index, engine=engine) for index, engine in enumerate(BOTH))
        for made in (bundle, old)
    ]
    assert kinds == ["backprop", "backprop", "backprop", "forward-only"]
    with pytest.raises(BundleError, match="no training graphs for executorch"):
        without.training_graph(1, "executorch")
    partly = msgspec.structs.replace(bundle.manifest, levels=[1, 2])
    with pytest.raises(BundleError, match="levels are not those"):
        decode_manifest(encode_manifest(partly))


def test_batches_that_do_not_fit_are_errors(bundle: Bundle) -> None:
    theta, engine = bundle.initial_adapter(), Engines("executorch", 1).make_training_engine(bundle)
    with pytest.raises(TrainingError, match=r"17 rows; .* up to 16"):
        engine.gradients(theta, [1], pad([[5, 6]] * 17, [0] * 17, 0), np.zeros_like(theta))
    with pytest.raises(TrainingError, match=r"ExecuTorch failed on a batch of 1 × 2 tokens in graphs/train_1.pte"):
        engine.gradients(theta, [1], pad([[10_000, 3]], [0], 0), np.zeros_like(theta))
