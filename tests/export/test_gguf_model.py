"""``covey finish --to gguf``: the file has the merged model's numbers and tokenizer; what it cannot say is refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest
from exports import finished_beside_model
from gguf_cases import GgufCase, adapted, adapters, gguf_case, loaded, logits_of
from parity import finished_folder
from safetensors.torch import load_file, save_file
from tiny_exports import TinyExport
from transformers import AutoConfig, AutoTokenizer

from edge_runtime.engines.golden import golden_adapter
from export.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle


@pytest.fixture(scope="module", params=["llama", "llama-tied", "qwen2", "qwen3"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> GgufCase:
    """Return a finished tiny model of an architecture."""
    return gguf_case(request.param, tmp_path_factory.mktemp(request.param))


def test_transformers_reads_the_merged_model_back(case: GgufCase) -> None:
    """Its logits and its tokens; transformers has its own reader of GGUF."""
    assert case.to("gguf", "gguf", "--dtype", "float32") == 0
    assert case.to("merged", "merged") == 0
    assert sorted(path.name for path in (case.root / "gguf").iterdir()) == ["covey_task.json", "model.gguf"]
    ids = case.ids()
    merged = logits_of(loaded(case.root / "merged"), ids)
    assert np.abs(merged - logits_of(loaded(case.model_dir), ids)).max() > 0.1  # the adapter matters
    # transformers takes the size of a Qwen3's heads from nowhere but its own configuration.
    config = AutoConfig.from_pretrained(case.model_dir)
    found = logits_of(loaded(case.root / "gguf", gguf_file="model.gguf", config=config), ids)
    assert np.abs(found - merged).max() < 2e-5
    read = AutoTokenizer.from_pretrained(case.root / "gguf", gguf_file="model.gguf")
    assert read("a very good film it's", add_special_tokens=False)["input_ids"] == case.ids("a very good film it's")


def test_smaller_types_are_the_same_numbers_rounded(case: GgufCase) -> None:
    wide, halves = ({}, {})
    for dtype, bits, read in (("float32", 32, wide), ("float16", 16, halves), ("bfloat16", 16, {})):
        assert case.to("gguf", dtype, "--dtype", dtype) == 0
        reader = gguf.GGUFReader(case.root / dtype / "model.gguf")
        for tensor in reader.tensors:
            is_matrix = len(tensor.shape) > 1
            assert tensor.n_bytes * 8 == tensor.n_elements * (bits if is_matrix else 32)
            read[tensor.name] = gguf.dequantize(np.array(tensor.data), tensor.tensor_type)
        for name, values in read.items():
            largest, mantissa_bits = np.abs(wide[name]).max(), 8 if dtype == "bfloat16" else 11
            assert np.abs(values - wide[name]).max() <= largest * 2.0**-mantissa_bits
    # By default float16.
    assert case.to("gguf", "default") == 0
    assert (case.root / "default" / "model.gguf").read_bytes() == (case.root / "float16" / "model.gguf").read_bytes()


def test_a_gguf_file_is_a_model_again(tmp_path: Path) -> None:
    """The exporter takes it, and its vocabulary is copied into the next file as it is."""
    case = gguf_case("llama", tmp_path / "first")
    assert case.to("gguf", "gguf", "--dtype", "float32") == 0
    folder = case.root / "gguf"
    adapters(adapted(folder), tmp_path, scale=0.1)
    again = GgufCase("llama", tmp_path, folder, tmp_path / "untrained")
    assert again.to("gguf", "again", "--dtype", "float32") == 0
    first, second = (gguf.GGUFReader(path / "model.gguf") for path in (folder, tmp_path / "again"))
    fields = [
        {n: f.contents() for n, f in read.fields.items() if n.startswith("tokenizer.")} for read in (first, second)
    ]
    assert fields[0] == fields[1]
    tensors = [{tensor.name: np.array(tensor.data) for tensor in read.tensors} for read in (first, second)]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(np.abs(values - tensors[1][name]).max() < 1e-6 for name, values in tensors[0].items())


def finished(bundle: Bundle, folder: Path) -> Path:
    return finished_folder(bundle, bundle.initial_adapter(), folder)


@pytest.mark.slow
def test_every_weight_trained(tmp_path: Path) -> None:
    asked = TinyExport("llama-tied", "causal-lm", splits=(1,), train="full")
    bundle = asked.write(tmp_path / "models", tmp_path / "bundle")
    theta = golden_adapter(bundle.initial_adapter(), bundle.manifest.golden)
    trained = finished_folder(bundle, theta, tmp_path / "finished")
    case = GgufCase("llama-tied", tmp_path, tmp_path / "models" / "llama-tied", trained)
    assert case.to("gguf", "gguf", "--dtype", "float32") == 0
    found = logits_of(loaded(tmp_path / "gguf", gguf_file="model.gguf"), case.ids())
    assert np.abs(found - logits_of(loaded(case.adapter), case.ids())).max() < 2e-5


@pytest.mark.parametrize("kind", ["bert", "opt"])
def test_other_architectures_are_refused(
    tiny_export: Callable[..., Bundle], tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tiny_export(kind, **({"task": "causal-lm", "splits": (1,)} if kind == "opt" else {}))
    case = GgufCase(kind, tmp_path, bundle.path.parents[1] / "models" / kind, finished(bundle, tmp_path / "finished"))
    assert case.to("gguf", "out") == ExportError.exit_code
    said = capsys.readouterr().err
    assert f"a GGUF of {kind} cannot be written; known: llama, qwen2, qwen3" in said
    assert "--to merged" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"hidden_act": "gelu"}, "'gelu'"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}, "'yarn'"),
    ],
)
def test_what_gguf_cannot_say_is_refused(
    case: GgufCase, changed: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = case.model_dir / "config.json"
    before = path.read_text()
    path.write_text(json.dumps(json.loads(before) | changed))
    try:
        assert case.to("gguf", "refused") == ExportError.exit_code
    finally:
        path.write_text(before)
    assert said in capsys.readouterr().err
    assert not (case.root / "refused").exists()


def test_a_way_to_divide_texts_that_has_no_name_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = gguf_case("llama", tmp_path)
    path = case.model_dir / "tokenizer.json"
    content = json.loads(path.read_text())
    for first in ({"type": "Whitespace"}, content["pre_tokenizer"] | {"add_prefix_space": True}):
        path.write_text(json.dumps(content | {"pre_tokenizer": first}))
        assert case.to("gguf", "out") == ExportError.exit_code
        assert "has no name in GGUF that is known here" in capsys.readouterr().err


def test_numbers_that_float16_cannot_hold_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = gguf_case("llama", tmp_path)
    path = case.model_dir / "model.safetensors"
    tensors = load_file(path)
    tensors["model.embed_tokens.weight"][5, 5] = 70_000.0
    save_file(tensors, path, metadata={"format": "pt"})
    assert case.to("gguf", "out") == ExportError.exit_code
    assert "token_embd.weight has numbers that float16 cannot hold" in capsys.readouterr().err
    assert case.to("gguf", "out", "--dtype", "bfloat16") == 0


def test_a_head_has_no_place(tmp_path: Path, tiny_bundle: Bundle) -> None:
    folder = finished_beside_model(tiny_bundle, tmp_path / "bert")
    case = GgufCase("bert", tmp_path, folder, folder)
    assert case.to("gguf", "out") == ExportError.exit_code
