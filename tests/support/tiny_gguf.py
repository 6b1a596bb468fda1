"""Writes a tiny Llama as a GGUF file, with its tokenizer inside, as llama.cpp's converter would."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import gguf
from safetensors.torch import load_file

if TYPE_CHECKING:
    from pathlib import Path

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write_gguf(model: Path, path: Path, quantisation: str = "F32") -> Path:
    """Write a tiny Llama's folder as one GGUF file; matrices are quantised, vectors are not.

    Args:
        model: a folder of tiny_models.make_model.
        path: the file.
        quantisation: name of a type of gguf's, such as Q8_0. An integer type holds the rounded weights.
    """
    dtype = gguf.GGMLQuantizationType[quantisation]
    config, content = (json.loads((model / name).read_text()) for name in ("config.json", "tokenizer.json"))
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    _add_tokenizer(writer, content["model"])
    for name, tensor in load_file(model / "model.safetensors").items():
        values = tensor.numpy()
        if values.ndim == 1 or quantisation == "F32":
            writer.add_tensor(_renamed(name), values)
        elif quantisation.startswith(("I", "F64")) and not quantisation.startswith("IQ"):
            writer.add_tensor(_renamed(name), values.astype({"I8": "int8", "I32": "int32", "F64": "f8"}[quantisation]))
        else:
            writer.add_tensor(_renamed(name), gguf.quantize(values, dtype), raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: gguf.GGUFWriter, model: dict) -> None:
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if i < 3 else gguf.TokenType.NORMAL for i in range(len(tokens))])
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)


def _renamed(name: str) -> str:
    module = name.removesuffix(".weight")
    if module in _NAMES:
        return _NAMES[module] + ".weight"
    _, _, layer, inner = module.split(".", 3)
    return f"blk.{layer}.{_NAMES[inner]}.weight"
