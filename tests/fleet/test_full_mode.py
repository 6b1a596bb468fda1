"""Every weight trained: graphs, memory, replay from file to file, a fleet, the finished model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import transformers
from fleets import edge_configs, write_job
from parity import batches, finished_folder
from safetensors.torch import load_file
from tiny_models import make_model
from transformers import AutoModelForCausalLM

from edge_runtime.bundle.adapter import adapter_sha256
from edge_runtime.bundle.folder import Bundle, verify_files
from edge_runtime.bundle.layout import front_size, views
from edge_runtime.data.rows import EncodedRows
from edge_runtime.engines.choose import Engines
from edge_runtime.engines.golden import check_golden, golden_adapter
from edge_runtime.errors import BundleError, ConfigError
from edge_runtime.files.tensor_file import map_flat
from edge_runtime.forward_only.coefficients import Terms, apply_terms
from edge_runtime.forward_only.directions import step_seeds
from edge_runtime.forward_only.round import RoundSettings, train_round
from edge_runtime.forward_only.step import spzo_step
from edge_runtime.protocol.step_rule import StepRule
from export.bundle.bundle_writer import export_bundle
from export.bundle.options import ExportOptions
from export.errors import ExportError
from export.finished import load_finished
from export.model.options import TaskOptions
from export.source.folder import look_at
from server.job.fitted import fit_to_bundle
from server.job.job import Job
from server.serving.loaded_job import load_job
from server.simulation.in_process import run_in_process

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.values import FloatVector

CASES: list[tuple[str, dict[str, Any]]] = [
    ("bert", {}),
]
SLOW: list[tuple[str, dict[str, Any]]] = [
    ("llama-tied", {"task": "classify-prompt"}),
    ("roberta-mlm", {"task": "classify-prompt"}),
    ("deberta", {}),
    ("mpnet-classifier", {}),
    ("distilbert", {}),
    ("opt-tied", {"task": "classify-prompt"}),
    ("qwen2", {"task": "classify-prompt"}),
    ("qwen3-tied", {"task": "classify-prompt"}),
]


@pytest.fixture(params=[*CASES, *(pytest.param(case, marks=pytest.mark.slow) for case in SLOW)], ids=str)
def case(request: pytest.FixtureRequest, tiny_export: Callable[..., Bundle]) -> tuple[Bundle, Path]:
    kind, options = request.param
    bundle = tiny_export(kind, train="full", **options)
    return bundle, bundle.path.parents[1] / "models" / kind


def moved(bundle: Bundle) -> FloatVector:
    return golden_adapter(bundle.initial_adapter(), bundle.manifest.golden)


def test_graphs_agree_with_pytorch(case: tuple[Bundle, Path], tmp_path: Path) -> None:
    """predict and front∘back with every weight moved, against the finished folder in PyTorch: 1e-5."""
    bundle, model_dir = case
    theta = moved(bundle)
    model = load_finished(finished_folder(bundle, theta, tmp_path / "finished"), model_dir)
    predictor = Engines(threads=1).make_predictor(bundle)
    engines = [Engines(threads=1).make_engine(bundle, split) for split in bundle.manifest.splits]
    for batch in batches():
        with torch.no_grad():
            expected = model(torch.from_numpy(batch.input_ids), torch.from_numpy(batch.attention_mask))
            loss = float(torch.nn.functional.cross_entropy(expected, torch.from_numpy(batch.labels)))
        scale = max(1.0, float(expected.abs().max()))
        assert np.abs(predictor.logits(theta, batch) - expected.numpy()).max() < 1e-5 * scale
        for engine in engines:
            engine.front_workspace[:] = theta[: engine.front_workspace.size]
            boundary = engine.front(batch)
            engine.back_workspace[:] = theta[engine.front_workspace.size :]
            assert abs(engine.back(boundary, batch) - loss) < 1e-5 * scale


def test_transformers_finds_every_weight_in_the_finished_folder(case: tuple[Bundle, Path], tmp_path: Path) -> None:
    """By the names of Hugging Face's own classes; a weight that a reload misses would start at random."""
    bundle, _ = case
    finished = finished_folder(bundle, bundle.initial_adapter(), tmp_path / "finished")
    described = json.loads((finished / "config.json").read_text())
    auto = getattr(transformers, described["architectures"][0])
    model, report = auto.from_pretrained(finished, output_loading_info=True)
    assert all("pooler" in name for name in report["missing_keys"])
    assert set(report["unexpected_keys"]) <= {"classifier.weight", "classifier.bias"}
    kept = json.loads((bundle.path.parents[1] / "models" / case[1].name / "config.json").read_text())
    assert described.get("use_cache") == kept.get("use_cache")
    assert model.config.id2label in ({0: "bad", 1: "good"}, {0: "LABEL_0", 1: "LABEL_1"})


def test_all_that_the_task_computes_with_is_trained(case: tuple[Bundle, Path]) -> None:
    bundle, _ = case
    manifest = bundle.manifest
    verify_files(bundle)
    assert (manifest.train, manifest.lora) == ("full", None)
    assert manifest.model.parameters == manifest.parameters[-1].stop
    roles = {tensor.role for graph in manifest.graphs for tensor in graph.inputs}
    assert roles <= {"trainable", "batch", "boundary"}
    theta = bundle.initial_adapter()
    assert not theta.flags.writeable
    for name, tensor in load_file(bundle.file(manifest.weights_file)).items():
        assert np.array_equal(views(theta, manifest.parameters)[name], tensor.numpy())


def test_a_block_at_a_time_is_in_memory(case: tuple[Bundle, Path]) -> None:
    bundle, _ = case
    total = bundle.manifest.parameters[-1].stop
    for split in bundle.manifest.splits:
        engine = Engines(threads=1).make_engine(bundle, split)
        front = front_size(bundle.manifest.parameters, split)
        assert (engine.front_workspace.size, engine.back_workspace.size) == (front, total - front)
        base = engine.front_workspace.base
        assert base is not None
        assert base is engine.back_workspace.base
        assert base.size == max(front, total - front)


def test_a_run_reads_no_more_than_the_step_writes(case: tuple[Bundle, Path]) -> None:
    """All of the workspace but what a step writes holds NaN: one value too many would show in the loss."""
    bundle, _ = case
    theta, rule = bundle.initial_adapter(), StepRule(back_perturbations=2, eps=1e-3, normalize="none")
    for split in bundle.manifest.splits:
        engine, whole = Engines(threads=1).make_engine(bundle, split), Engines(threads=1).make_engine(bundle, split)
        rows = {i.source: i.rows for g in bundle.manifest.graphs if g.split == split for i in g.inputs if i.rows}
        embeddings = [name for name in rows if "word_embeddings" in name or "embed_tokens" in name]
        assert [rows[name] for name in embeddings] == ["input_ids"]
        words = [rows[name] for name in rows if "lm_head.weight" in name]
        assert words in ([], [sorted(bundle.manifest.task.label_token_ids or [])])
        for index, batch in enumerate(batches()):
            directions = step_seeds(rule, 1, 0, "pi", index)
            read = sum(part.stop - part.start for part in engine.front_reads(batch))
            assert read < engine.front_workspace.size
            engine.front_workspace[:] = np.nan
            engine.back_workspace[:] = np.nan
            scalars = spzo_step(engine, theta, batch, rule, directions).scalars
            whole.front_reads = lambda _batch, size=whole.front_workspace.size: [slice(0, size)]  # type: ignore[method-assign]
            whole.back_reads = lambda _batch, size=whole.back_workspace.size: [slice(0, size)]  # type: ignore[method-assign]
            assert scalars.tobytes() == spzo_step(whole, theta, batch, rule, directions).scalars.tobytes()


def test_scalars_are_pytorchs(tiny_export: Callable[..., Bundle]) -> None:
    """One step at the mapped weights against the same losses computed by another route: the predictor."""
    bundle = tiny_export("bert", train="full")
    theta, batch = bundle.initial_adapter(), batches()[0]
    rule = StepRule(back_perturbations=1, eps=1e-3, normalize="none")
    engine, predictor = Engines(threads=1).make_engine(bundle, 2), Engines(threads=1).make_predictor(bundle)
    directions = step_seeds(rule, 1, 0, "pi", 0)
    scalar = float(spzo_step(engine, theta, batch, rule, directions).scalars[0])
    losses = []
    for sign in (1, -1):
        there = np.empty_like(theta)
        apply_terms(
            there,
            theta,
            engine.front_workspace.size,
            Terms([(directions.front[0], sign * rule.eps)], [(directions.back[0], sign * rule.eps)]),
        )
        logits = predictor.logits(there, batch).astype(np.float64)
        chosen = logits[np.arange(batch.rows), batch.labels]
        losses.append(float((np.log(np.exp(logits).sum(axis=1)) - chosen).mean()))
    assert scalar == pytest.approx((losses[0] - losses[1]) / (2 * rule.eps), rel=1e-2, abs=1e-2)


def test_a_round_without_a_copy_has_the_bits_of_one_with(tiny_export: Callable[..., Bundle]) -> None:
    bundle = tiny_export("bert", train="full")
    rows = EncodedRows([[2, 8, 9, 3], [2, 10, 3], [2, 11, 12, 13, 3]], [0, 1, 1], 0)
    engines = Engines(threads=1)
    settings = RoundSettings(1, 0, "pi", StepRule(back_perturbations=2, eps=1e-3, learning_rate=1e-4), 3, 2, None)
    results = [
        train_round(engines.make_engine(bundle, 2), bundle.initial_adapter(), rows, settings, copy=copy)
        for copy in (True, False)
    ]
    assert results[0] is not None
    assert results[1] is not None
    assert results[0].scalars.tobytes() == results[1].scalars.tobytes()
    assert results[1].theta is None


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_a_fleet_trains_every_weight(tmp_path: Path, tiny_export: Callable[..., Bundle], momentum: float) -> None:
    bundle = tiny_export("llama-tied", task="classify-prompt", train="full")
    step = {"eps": 1e-3, "learning_rate": 2e-3}
    path = write_job(tmp_path, step, rounds=6, cohort=2, min_devices=4, train="full", server_momentum=momentum)
    fitted, bundle = load_job(path, bundle.path)
    summary = run_in_process(fitted, bundle, tmp_path / "server", edge_configs(tmp_path, 4))
    assert summary["adapter_sha256"] != adapter_sha256(bundle.initial_adapter())
    finished = Path(summary["result_dir"])
    model = AutoModelForCausalLM.from_pretrained(finished)
    assert not model.config.tie_word_embeddings
    stored = load_file(finished / "model.safetensors")
    ours = load_finished(finished, bundle.path.parents[1] / "models" / "llama-tied")
    batch = batches()[1]
    theta = np.fromfile(tmp_path / "server" / "blobs" / summary["adapter_sha256"], "<f4")
    assert np.array_equal(stored["lm_head.weight"].numpy(), views(theta, bundle.manifest.parameters)["lm_head.weight"])
    with torch.no_grad():
        expected = ours(torch.from_numpy(batch.input_ids), torch.from_numpy(batch.attention_mask)).numpy()
    found = Engines(threads=1).make_predictor(bundle).logits(theta, batch)
    assert np.abs(found - expected).max() < 1e-5 * max(1.0, np.abs(expected).max())
    kept = [p for p in (tmp_path / "device-0" / "adapters").iterdir() if p.suffix == ".bin"]
    assert len(kept) <= 2


def test_mode_and_bundle_must_fit(tiny_export: Callable[..., Bundle], tmp_path: Path) -> None:
    lora, full = tiny_export("bert"), tiny_export("bert", train="full")
    for bundle, wanted in ((lora, "full"), (full, "lora")):
        with pytest.raises(ConfigError, match=f"re-export with covey export --train {wanted}"):
            fit_to_bundle(Job("j", "x", train=wanted), bundle.manifest, bundle.sha256)  # type: ignore[arg-type]
    names = [p.name for p in full.manifest.parameters]
    for wrong in (names[::-1], names[1:]):
        with pytest.raises(BundleError, match="in its order"):
            map_flat(full.file(full.manifest.weights_file), wrong, full.manifest.parameters[-1].stop)
    folder = make_model("bert", tmp_path / "model")
    finished_folder(lora, lora.initial_adapter(), tmp_path / "adapter")
    for path in (tmp_path / "adapter").iterdir():
        path.rename(folder / path.name)
    options = TaskOptions("classify-head", ["bad", "good"], None, None, 32, None, None, None)
    with pytest.raises(ExportError, match="merge it into the model first"):
        export_bundle(look_at(folder), ExportOptions(options, None, [1]), tmp_path / "bundle")


@pytest.mark.slow
def test_completions_train_every_weight_too(tiny_export: Callable[..., Bundle]) -> None:
    bundle = tiny_export("llama-tied", task="causal-lm", train="full")
    assert bundle.manifest.train == "full"
    assert {"lm_head.weight", "model.embed_tokens.weight"} <= {p.name for p in bundle.manifest.parameters}
    assert check_golden(bundle).loss < 1e-5
