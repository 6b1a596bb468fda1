"""The finished model as one GGUF file, which llama.cpp and its relatives run.

LoRA is merged into the weights; matrices are written as float32, float16 or bfloat16, vectors as float32. llama.cpp's
``llama-quantize`` makes smaller ones of it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import torch

from export.errors import ExportError
from export.model.rebuild import FILE, read_rebuild
from export.outputs.folder import new_folder
from export.outputs.gguf_form import ARCHITECTURES, in_rows_of_gguf
from export.outputs.gguf_vocabulary import add_vocabulary
from export.outputs.merged import load_merged
from export.quiet import quiet
from export.source.folder import look_at

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edge_runtime.values import Tensor
    from export.source.folder import ModelFolder

MODEL_FILE = "model.gguf"
_TYPES = {
    "float32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "float16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bfloat16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
}
_LARGEST_FLOAT16 = float(np.finfo(np.float16).max)
_WAY_AROUND = "use --to merged, and llama.cpp's convert_hf_to_gguf.py where it knows the model"
_ENDINGS = (".weight", ".bias")


def write_gguf_model(adapter: Path, model_dir: Path, out: Path, dtype: str) -> int:
    """Write a finished model as ``model.gguf``, with covey_task.json; return its bytes.

    Args:
        adapter: see load_finished.
        model_dir: see load_finished.
        out: the folder to make.
        dtype: of the matrices: a key of _TYPES.

    Raises:
        ExportError: see load_finished; or GGUF's form of the architecture, of its positions or of its tokenizer is not
            known here, a head was trained, or a weight is too large for float16.
        StorageError: see new_folder.
    """
    folder, rebuild = look_at(model_dir), read_rebuild(adapter)
    _check(folder)
    model: Any = load_merged(adapter, model_dir).model
    if not type(model).__name__.endswith("ForCausalLM"):
        raise ExportError("a head was trained, for which GGUF has no place", "use --to merged, onnx or pte")
    architecture = ARCHITECTURES[folder.model_type]
    matrix_type, file_type = _TYPES[dtype]
    with new_folder(out) as partial:
        writer = gguf.GGUFWriter(partial / MODEL_FILE, gguf.MODEL_ARCH_NAMES[architecture])
        writer.add_type("model")
        writer.add_name(folder.path.resolve().name)
        writer.add_file_type(file_type)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        _add_sizes(writer, folder.config)
        with quiet():
            add_vocabulary(writer, folder)
        for name, values in _tensors(model, folder, gguf.get_tensor_name_map(architecture, folder.layers)):
            kind = matrix_type if values.ndim > 1 else gguf.GGMLQuantizationType.F32
            if kind == gguf.GGMLQuantizationType.F16 and np.abs(values).max() > _LARGEST_FLOAT16:
                raise ExportError(f"{name} has numbers that float16 cannot hold", "use --dtype bfloat16 or float32")
            writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        (partial / FILE).write_text(json.dumps(rebuild, indent=1) + "\n")
        return (partial / MODEL_FILE).stat().st_size


def _check(folder: ModelFolder) -> None:
    config = folder.config
    if folder.model_type not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise ExportError(f"a GGUF of {folder.model_type} cannot be written; known: {known}", _WAY_AROUND)
    if config.hidden_act != "silu":
        raise ExportError(f"a GGUF of a model with {config.hidden_act!r} cannot be written", _WAY_AROUND)
    if getattr(config, "use_sliding_window", False):
        raise ExportError("a GGUF of a model whose attention has a sliding window cannot be written", _WAY_AROUND)
    kind = config.rope_parameters["rope_type"]
    if kind not in {"default", "linear", "llama3"}:
        raise ExportError(f"a GGUF of a model whose rope_type is {kind!r} cannot be written", _WAY_AROUND)


def _add_sizes(writer: Any, config: Any) -> None:
    head, rope = _head_size(config), config.rope_parameters
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])


def _head_size(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _tensors(model: Any, folder: ModelFolder, names: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the name in GGUF and the values, float32, of every weight; one that is tied to another is left out."""
    seen: set[int] = set()
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())
        target = names.get_name(name, try_suffixes=_ENDINGS)
        if target is None:
            raise ExportError(f"GGUF has no name for {name}", _WAY_AROUND)
        values = tensor.detach().to(torch.float32).contiguous().numpy()
        yield target, np.ascontiguousarray(in_rows_of_gguf(values, name.rpartition(".")[0], folder.config))
    if folder.config.rope_parameters["rope_type"] == "llama3":
        head = _head_size(folder.config)
        usual = folder.config.rope_parameters["rope_theta"] ** -(np.arange(0, head, 2) / head)
        yield "rope_freqs.weight", (usual / model.model.rotary_emb.inv_freq.numpy()).astype(np.float32)
