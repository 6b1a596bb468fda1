"""Weights that an export must not take: of other types, shapes and formats; each is named as what it is."""

from __future__ import annotations

import json
import os
import shutil
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from model_folders import POINTER, QUERY, path_in, refusal
from safetensors.torch import load_file, save_file
from tiny_gguf import write_gguf
from tiny_models import make_model

from export.errors import ExportError
from export.finished import load_finished

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle


def test_cut_files_say_how_much_is_there(copy_of: Callable[[str], Path]) -> None:
    for kind, name in (("safetensors", "model.safetensors"), ("gguf", "model.gguf")):
        path = copy_of(kind) / name
        size = path.stat().st_size
        os.truncate(path, size - 100)
        found = refusal(path.parent)
        assert f"{path} is cut: {size - 100} bytes of " in found
        # The last tensor of a GGUF file may be followed by padding.
        assert size - 32 < int(found.split()[-1]) <= size


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "float8_e4m3fn", "float8_e5m2", "bool", "int64"])
def test_weights_that_are_not_floats_are_refused_in_every_format(
    copy_of: Callable[[str], Path], tmp_path: Path, dtype: str
) -> None:
    folder = copy_of("safetensors")
    state = load_file(folder / "model.safetensors")
    state[QUERY] = state[QUERY].to(getattr(torch, dtype))
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    assert f"{QUERY} is " in refusal(folder)
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    assert f"{QUERY} is {dtype}, not a float" in refusal(folder)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("qweight", "int32"), ("weight_packed", "int32"), ("weight_scale_inv", "float8_e4m3fn"), ("blocks", "uint8")],
)
def test_packed_weights_are_refused(copy_of: Callable[[str], Path], name: str, dtype: str) -> None:
    folder = copy_of("safetensors")
    state = load_file(folder / "model.safetensors")
    packed = QUERY.replace("weight", name)
    state[packed] = state.pop(QUERY).to(getattr(torch, dtype))
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    assert f"{packed} is " in refusal(folder)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor", "ignore:TypedStorage")
def test_quantised_tensors_of_pytorch_and_sparse_ones_are_refused(copy_of: Callable[[str], Path]) -> None:
    folder = copy_of("pickle")
    state = torch.load(folder / "pytorch_model.bin")
    for odd in (torch.quantize_per_tensor(state[QUERY], 0.1, 0, torch.qint8), state[QUERY].to_sparse()):
        torch.save(state | {QUERY: odd}, folder / "pytorch_model.bin")
        refusal(folder)


@pytest.mark.parametrize("dtype", ["I8", "I32", "F64"])
def test_gguf_types_that_cannot_become_floats_are_refused(
    good_folder: Callable[[str], Path], tmp_path: Path, dtype: str
) -> None:
    good_folder("gguf")
    write_gguf(good_folder("gguf").with_name("gguf-source"), tmp_path / "odd" / "model.gguf", dtype)
    assert f"is {dtype}, " in refusal(tmp_path / "odd")


def test_a_configuration_of_a_quantised_model_is_refused(copy_of: Callable[[str], Path]) -> None:
    folder = copy_of("safetensors")
    _set(folder / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    assert "config.json says that the model is quantised (gptq)" in refusal(folder)


def test_gguf_files_that_leave_the_choice_open_are_refused(copy_of: Callable[[str], Path]) -> None:
    folder = copy_of("gguf")
    shutil.copy(folder / "model.gguf", folder / "other.gguf")
    assert "has 2 GGUF files: model.gguf, other.gguf" in refusal(folder)
    (folder / "other.gguf").unlink()
    (folder / "model.safetensors").write_bytes(b"")
    assert "has a GGUF file beside other weights: model.gguf and model.safetensors" in refusal(folder)
    (folder / "model.safetensors").unlink()
    (folder / "model.gguf").rename(folder / "model-00001-of-00002.gguf")
    assert "is one of 2 parts of a split GGUF file" in refusal(folder)


class Calls:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("executed",)


def test_a_pickle_that_calls_a_function_is_not_run(
    copy_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = copy_of("pickle") / "pytorch_model.bin"
    state = torch.load(path)
    for new_format in (True, False):
        torch.save({"x": Calls()} | state, path, _use_new_zipfile_serialization=new_format)
        message = refusal(path.parent)
        assert f"{path} holds more than tensors: its pickle calls posix.mkdir" in message
        assert "weights_only" not in message
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a value of type list, not the tensors of a model by name"),
        ({"epoch": 3}, "holds a value of type int under 'epoch', not a tensor"),
        ({"model": {"a": torch.ones(1)}}, "holds a value of type dict under 'model', not a tensor"),
    ],
)
def test_pickles_of_something_else_are_named(copy_of: Callable[[str], Path], content: Any, message: str) -> None:
    path = copy_of("pickle") / "pytorch_model.bin"
    torch.save(content, path)
    assert message in refusal(path.parent)


def test_other_formats_under_the_name_of_safetensors(copy_of: Callable[[str], Path], good_folder: Any) -> None:
    path = copy_of("safetensors") / "model.safetensors"
    shutil.copy(good_folder("pickle") / "pytorch_model.bin", path)
    assert "is not a safetensors file but a zip archive, as PyTorch writes it" in refusal(path.parent)
    shutil.copy(good_folder("gguf") / "model.gguf", path)
    assert "is not a safetensors file but a GGUF file" in refusal(path.parent)


def test_shapes_are_named(copy_of: Callable[[str], Path]) -> None:
    folder = copy_of("safetensors")
    state = load_file(folder / "model.safetensors")
    state[QUERY] = state[QUERY][:16].contiguous()
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    assert f"{QUERY} has the shape [16, 32], and the configuration asks for [32, 32]" in refusal(folder)


def test_a_shard_that_is_missing_is_named(copy_of: Callable[[str], Path]) -> None:
    path = path_in(copy_of("shards"), "model-00002-of-*.safetensors")
    path.unlink()
    assert f"and {path.name!r} is not in {path.parent}" in refusal(path.parent)


def test_weights_of_other_frameworks_are_named(copy_of: Callable[[str], Path]) -> None:
    folder = copy_of("safetensors")
    (folder / "model.safetensors").rename(folder / "tf_model.h5")
    assert "has no weights that Covey reads, but tf_model.h5" in refusal(folder)


def test_values_that_are_not_finite_are_refused(copy_of: Callable[[str], Path]) -> None:
    folder = copy_of("safetensors")
    state = load_file(folder / "model.safetensors")
    state[QUERY][3, 4] = float("nan")
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    assert f"{QUERY} has values that are not finite" in refusal(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 10**9}, "has 1000000000 layers"),
        ({"vocab_size": 10**9}, "describes a model of"),
        ({"max_position_embeddings": "many"}, "config.json"),
        ({"max_position_embeddings": 0}, "longest row is 0"),
        ({"vocab_size": -3}, "config.json"),
        ({"pad_token_id": 53}, "pad_token_id is 53, and the vocabulary has 53 tokens"),
        ({"num_attention_heads": 5}, "cannot build the model"),
    ],
)
def test_a_configuration_that_does_not_fit_takes_no_memory(
    copy_of: Callable[[str], Path], changes: dict[str, Any], message: str
) -> None:
    folder = copy_of("safetensors")
    _set(folder / "config.json", **changes)
    assert message in refusal(folder)


def _set(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("name", "content", "module", "message"),
    [
        ("spm.model", b"\n\x0e\n\x05<unk>\x15\x00", "sentencepiece", "the package sentencepiece is missing"),
        ("tokenizer.model", b"\n\x0e\n\x05<unk>\x15\x00", "google.protobuf", "the package protobuf is missing"),
        ("tokenizer.model", b"IQ== 0\nIg== 1\n", "tiktoken", "the package tiktoken is missing"),
    ],
)
def test_a_slow_tokenizer_names_the_package_that_converts_it(
    copy_of: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    content: bytes,
    module: str,
    message: str,
) -> None:
    folder = copy_of("safetensors")
    (folder / "tokenizer.json").unlink()
    (folder / name).write_bytes(content)
    monkeypatch.setitem(sys.modules, module, None)
    assert message in refusal(folder)


@pytest.mark.parametrize("content", [b"\n\x0e\n\x05<unk>\x15\x00", b"\0" * 50, b"rubbish"])
def test_a_damaged_vocabulary_is_no_empty_tokenizer(copy_of: Callable[[str], Path], content: bytes) -> None:
    folder = make_model("deberta", copy_of("safetensors"))
    (folder / "tokenizer.json").unlink()
    (folder / "spm.model").write_bytes(content)
    assert f"cannot load the tokenizer in {folder}" in refusal(folder)


def test_adapters_without_weights_or_as_pickles_are_named(copy_of: Callable[[str], Path]) -> None:
    path = copy_of("adapter") / "adapter_model.safetensors"
    state = load_file(path)
    path.unlink()
    assert "has an adapter_config.json, but no adapter_model.safetensors" in refusal(path.parent)
    torch.save(state, path.with_suffix(".bin"))
    assert "is in PyTorch's old format, adapter_model.bin" in refusal(path.parent)


@pytest.mark.parametrize("content", ["[]", "{}", '{"base_model_name_or_path": 3}', "[" * 10**5])
def test_an_adapter_that_names_no_base_model(copy_of: Callable[[str], Path], content: str) -> None:
    folder = copy_of("adapter")
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text(content)
    assert "adapter_config.json" in refusal(folder)


def test_a_finished_adapter_is_looked_into(bundle_copy: Bundle, good_folder: Callable[[str], Path]) -> None:
    path = bundle_copy.file(bundle_copy.manifest.adapter_file)
    for keep in (0, 7, 100, path.stat().st_size - 1):
        os.truncate(path, keep)
        with pytest.raises(ExportError, match=r"adapter_model\.safetensors"):
            load_finished(path.parent, good_folder("safetensors"))
    path.write_text(POINTER)
    with pytest.raises(ExportError, match="Git LFS pointer"):
        load_finished(path.parent, good_folder("safetensors"))
