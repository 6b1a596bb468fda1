"""causal-lm: graphs against PyTorch, no vocabulary of logits for every token, rounds, evaluation, continuation."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import onnxruntime as ort
import pytest
import torch
from decoding import complete, without_decode
from fleets import Fleet, free_port, write_job
from peft import PeftModel
from tiny_models import completions, make_model, write_rows
from transformers import AutoModelForCausalLM

from edge_runtime import cli as edge_cli
from edge_runtime.data.batch import IGNORED, CompletionBatch, pad_completions
from edge_runtime.data.examples import DataConfig
from edge_runtime.data.rows import EncodedCompletions, load_rows
from edge_runtime.engines.bundle_engine import BundleEngine
from edge_runtime.engines.choose import Engines
from edge_runtime.engines.golden import check_golden, golden_adapter
from edge_runtime.engines.predict import predict, score_completions
from edge_runtime.engines.sampling import Generation
from edge_runtime.errors import ConfigError
from export.errors import ExportError
from server.cli import main
from server.evaluation import evaluate
from server.storage.result_folder import write_finished

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.values import FloatVector

TASK = "causal-lm"
SPLITS = (1, 2)
KINDS = [
    "opt",
    *[pytest.param(k, marks=pytest.mark.slow) for k in ("llama", "llama-tied", "qwen2", "qwen3", "opt-narrow")],
]


@pytest.fixture(scope="session")
def bundle(tiny_export: Callable[..., Bundle]) -> Bundle:
    return tiny_export("opt", task=TASK, splits=SPLITS)


def adapter_of(bundle: Bundle) -> FloatVector:
    return golden_adapter(bundle.initial_adapter(), msgspec.structs.replace(bundle.manifest.golden, seed=77))


def eager_model(bundle: Bundle, kind: str, folder: Path) -> Any:
    """PEFT on the usual Auto class: every token's logits over the whole vocabulary."""
    write_finished(bundle, adapter_of(bundle), folder, {})
    base = AutoModelForCausalLM.from_pretrained(bundle.path.parents[1] / "models" / kind)
    return PeftModel.from_pretrained(base, folder).eval()


def eager_losses(model: Any, batch: CompletionBatch) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], float]:
    """Return the loss of each position, the likeliest tokens, and Hugging Face's own loss of the batch."""
    ids, mask = torch.from_numpy(batch.input_ids), torch.from_numpy(batch.attention_mask)
    targets = torch.full(ids.shape, IGNORED)
    real = batch.labels.ravel() != IGNORED
    rows, places = np.divmod(batch.positions.ravel()[real], ids.shape[1])
    targets[rows, places + 1] = torch.from_numpy(batch.labels.ravel()[real])
    with torch.no_grad():
        out = model(input_ids=ids, attention_mask=mask, labels=targets)
    logits = out.logits[rows, places]
    losses = torch.nn.functional.cross_entropy(logits, targets[rows, places + 1], reduction="none")
    return losses.numpy(), logits.argmax(dim=1).numpy(), float(out.loss)


def batches(pad_token_id: int) -> list[CompletionBatch]:
    """One chunk and several, a last one that is not full, one position alone, the longest row, short prompts."""
    rng = np.random.Generator(np.random.PCG64(5))
    made = []
    for lengths, starts, chunk in (
        ([9, 4, 15], [4, 3, 14], 64),
        ([32, 5, 2], [1, 2, 1], 10),
        ([2], [1], 64),
        ([7, 7], [3, 1], 1),
    ):
        rows = [rng.integers(3, 250, size=n).tolist() for n in lengths]
        made.append(pad_completions(rows, starts, pad_token_id, chunk))
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_graphs_agree_with_pytorch(tiny_export: Callable[..., Bundle], kind: str, tmp_path: Path) -> None:
    """Token losses, likeliest tokens and the loss, against Hugging Face's own loss over all logits."""
    bundle = tiny_export(kind, task=TASK, splits=SPLITS)
    theta, model = adapter_of(bundle), eager_model(bundle, kind, tmp_path / "adapter")
    predictor = Engines(threads=1).make_predictor(bundle)
    engines = [Engines(threads=1).make_engine(bundle, split) for split in SPLITS]
    for batch in batches(bundle.manifest.task.pad_token_id):
        losses, best, loss = eager_losses(model, batch)
        real = batch.labels != IGNORED
        for found in (predictor.token_scores(theta, batch), *(_back(engine, theta, batch) for engine in engines)):
            np.testing.assert_allclose(found[0][real], losses, rtol=1e-5, atol=1e-5)
            assert (found[1][real] == best).all()
            assert (found[0][~real] == 0).all()
        for engine in engines:
            assert engine.back(engine.front(batch), batch) == pytest.approx(loss, rel=1e-5, abs=1e-5)
    assert np.ptp(losses) > 0.1  # the comparison is about something
    assert check_golden(bundle).loss < 1e-5


def _back(engine: BundleEngine, theta: FloatVector, batch: CompletionBatch) -> tuple[Any, Any]:
    engine.front_workspace[:] = theta[: engine.front_workspace.size]
    engine.back_workspace[:] = theta[engine.front_workspace.size :]
    outputs = engine.back_outputs(engine.front(batch), batch)
    return outputs["token_losses"], outputs["best_tokens"]


def test_no_token_has_a_vocabulary_of_logits_but_those_of_a_chunk(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every value that ONNX Runtime computes, in the Scan's body too: none is larger than a chunk's logits."""
    options, sessions = ort.SessionOptions, itertools.count()

    def profiled() -> Any:
        made = options()
        made.enable_profiling, made.profile_file_prefix = True, str(tmp_path / f"{next(sessions)}")
        return made

    monkeypatch.setattr(ort, "SessionOptions", profiled)
    vocabulary = next(i.shape[0] for i in bundle.manifest.graph("predict").inputs if "embed_tokens" in i.source)
    chunk, rows, tokens = 8, 6, 32
    ids = np.arange(rows * tokens).reshape(rows, tokens) % 200 + 3
    batch = pad_completions(ids.tolist(), [2] * rows, 0, chunk)
    engine = Engines(threads=1).make_engine(bundle, 1)
    engine.back(engine.front(batch), batch)
    del engine  # a session writes its profile when it is closed
    back, _front = sorted(tmp_path.glob("*.json"))  # the front is loaded when it is first run
    profile = json.loads(back.read_text())
    made = [
        (event["args"]["op_name"], tuple(shape))
        for event in profile
        for described in event.get("args", {}).get("output_type_shape", [])
        for shape in described.values()
    ]
    assert {shape for _, shape in made if vocabulary in shape} == {(chunk, vocabulary)}
    products = [operator for operator, shape in made if shape == (chunk, vocabulary) and "Gemm" in operator]
    assert len(products) == math.ceil(rows * (tokens - 2) / chunk)
    # The attention scores are the largest.
    assert max(math.prod(shape) for _, shape in made) < rows * tokens * vocabulary / 2
    # ONNX Runtime's is too inexact over a real vocabulary, which a tiny model does not show.
    assert "ReduceLogSumExp" not in {operator for operator, _ in made}


def test_rows_are_scored_one_by_one(bundle: Bundle, tmp_path: Path) -> None:
    """Sums and counts of each row, whatever shares its batch; the server's loss is the mean over all tokens."""
    data = DataConfig(path=str(write_rows(completions(20, 1), tmp_path / "rows.jsonl")))
    rows, theta, predictor = load_rows(bundle, data), adapter_of(bundle), Engines(threads=1).make_predictor(bundle)
    assert isinstance(rows, EncodedCompletions)
    scores = score_completions(predictor, theta, rows)
    model = eager_model(bundle, "opt", tmp_path / "adapter")
    for index in range(len(rows)):
        batch = rows.batch([index])
        losses, best, _ = eager_losses(model, batch)
        assert scores.loss_sums[index] == pytest.approx(float(losses.sum()), rel=1e-5)
        assert scores.tokens[index] == len(losses) == len(rows.predicted[index])
        assert scores.right[index] == (best == batch.labels.ravel()[: len(losses)]).sum()
    evaluation = evaluate(predictor, theta, rows, 0)
    assert evaluation.loss == pytest.approx(scores.loss_sums.sum() / scores.tokens.sum())
    assert evaluation.accuracy == scores.right.sum() / scores.tokens.sum()


def test_a_fleet_trains_completions(bundle: Bundle, tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, bundle, free_port(), external=False)
    try:
        server = fleet.serve(write_job(tmp_path, rounds=2, min_devices=2, rows_of=completions))
        devices = [fleet.device(f"device-{index}", index, rows_of=completions) for index in range(2)]
        result = server.result()
        assert [device.result()["adapter_sha256"] for device in devices] == [result["adapter_sha256"]] * 2
    finally:
        fleet.stop()
    assert (result["rounds"], result["reports"]) == (2, 4)
    evaluated = [event for event in server.events() if event["event"] == "evaluated"]
    assert len(evaluated) == 3
    assert evaluated[-1]["loss"] != evaluated[0]["loss"]
    assert all(0 <= event["accuracy"] <= 1 for event in evaluated)


def test_without_a_decode_graph_prompts_are_continued_greedily(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theta, model = adapter_of(bundle), eager_model(bundle, "opt", tmp_path / "adapter")
    prompts = ["the film was", "a very long prompt " * 30]
    found = complete(without_decode(bundle), theta, prompts, Generation(5))
    for result in found:
        (ids,) = [_prompt_ids(bundle, result.prompt)]
        expected: list[int] = []
        while len(expected) < 5 and len(ids) + len(expected) < bundle.manifest.task.max_tokens:
            with torch.no_grad():
                token = int(model(input_ids=torch.tensor([ids + expected])).logits[0, -1].argmax())
            if token == bundle.manifest.task.eos_token_id:
                break
            expected.append(token)
        assert result.tokens == expected
    with pytest.raises(ConfigError, match="has no labels"):
        predict(bundle, theta, prompts)
    assert edge_cli.main(["predict", "--bundle", str(bundle.path), "--max-new-tokens", "3", "it was"]) == 0
    assert capsys.readouterr().out.startswith("it was")


def _prompt_ids(bundle: Bundle, prompt: str) -> list[int]:
    from tokenizers import Tokenizer

    ids: list[int] = Tokenizer.from_file(str(bundle.file(bundle.manifest.tokenizer_file))).encode(prompt).ids
    return ids[-(bundle.manifest.task.max_tokens - 1) :]


def test_bundles_and_rows_are_checked_on_the_command_line(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert edge_cli.main(["bundle", "verify", str(bundle.path), "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["parity_loss"] < 1e-5
    rows = write_rows(completions(6, 1), tmp_path / "rows.jsonl")
    check = ["data", "check", "--data", str(rows), "--format", "json"]
    assert edge_cli.main([*check, "--task", TASK]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["path"], found["rows"], found["findings"]) == (str(rows), 6, [])
    assert edge_cli.main([*check, "--bundle", str(bundle.path)]) == 0
    assert json.loads(capsys.readouterr().out)["tokens_max"] <= bundle.manifest.task.max_tokens
    assert edge_cli.main([*check, "--task", TASK, "--completion-field", "answer"]) == 4
    assert "line 1: no 'answer'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "flags", "message"),
    [
        ("bert", (), "needs a causal language model"),
        ("opt", ("--labels", "a,b"), "--labels: causal-lm has none"),
        ("opt", ("--template", "{text} It"), "--template: causal-lm has none"),
        ("opt", ("--lora-targets", "lm_head,q_proj"), "lm_head.lora_B.weight would be trained"),
    ],
)
def test_wrong_options_are_named(
    tmp_path: Path, kind: str, flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_model(kind, tmp_path / "model")
    arguments = ["export", str(folder), "--task", TASK, "--split", "1", "--out", str(tmp_path / "bundle"), *flags]
    assert main(arguments) == ExportError.exit_code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()
