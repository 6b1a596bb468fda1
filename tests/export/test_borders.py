"""Rows at the borders where a model computes otherwise: buckets, windows; what is refused; what golden vectors hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from tiny_models import WINDOW, make_model
from transformers import DebertaV2Config, GemmaConfig, LlamaConfig, MistralConfig, MPNetConfig, Phi3Config, Qwen2Config
from transformers.models.deberta_v2.modeling_deberta_v2 import build_relative_position
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

from edge_runtime.engines.golden import golden_cases
from export.errors import ExportError
from export.source.borders import border_lengths, check_traceable
from export.source.folder import look_at

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle


class Buckets(torch.nn.Module):
    """The relative-position bucket of each pair of tokens, by the model's own code."""

    def __init__(self, buckets: int, farthest: int | None) -> None:
        super().__init__()
        self.buckets, self.farthest = buckets, farthest

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return int64, (1, tokens, tokens), or (tokens, tokens) for MPNet."""
        if self.farthest is not None:
            return torch.as_tensor(build_relative_position(hidden, hidden, self.buckets, self.farthest))
        places = torch.arange(hidden.shape[-2])
        return torch.as_tensor(MPNetEncoder.relative_position_bucket(places[None, :] - places[:, None], self.buckets))


@pytest.mark.parametrize(("buckets", "farthest"), [(256, 512), (48, 100), (32, None)], ids=str)
def test_every_distance_has_its_bucket(buckets: int, farthest: int | None, tmp_path: Path) -> None:
    """DeBERTa-v3's own numbers first: all distances of the longest row, not only those of the traced one."""
    module, path = Buckets(buckets, farthest).eval(), tmp_path / "buckets.onnx"
    tokens = torch.export.Dim("tokens", min=2, max=1024)
    torch.onnx.export(
        module, (torch.zeros(1, 10, 4),), path, dynamo=True, dynamic_shapes=({1: tokens},), input_names=["hidden"],
        opset_version=20, verbose=False,
    )  # fmt: skip
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    for length in (1, buckets // 2 + 1, buckets // 2 + 2, farthest or 129, (farthest or 129) + 1):
        hidden = torch.zeros(1, length, 4)
        (found,) = session.run(None, {"hidden": hidden.numpy()})
        assert np.array_equal(found, module(hidden).numpy())


def llama(**parameters: Any) -> LlamaConfig:
    return LlamaConfig(rope_parameters={"rope_theta": 10000.0, **parameters})


LONG_ROPE = {"rope_type": "longrope", "short_factor": [1.0] * 64, "long_factor": [4.0] * 64, "factor": 4.0}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (llama(rope_type="dynamic", factor=2.0), "rope_type is 'dynamic'"),
        (llama(original_max_position_embeddings=512, **LONG_ROPE), "rope_type is 'longrope'"),
        (Qwen2Config(layer_types=["chunked_attention"] * 32), "layers of chunked_attention"),
        (Qwen2Config(layer_types=["sliding_attention"] * 32), "sliding_window is None"),
    ],
    ids=["dynamic", "longrope", "chunked", "no-window"],
)
def test_what_no_single_trace_computes_is_refused(config: Any, message: str) -> None:
    with pytest.raises(ExportError, match=message) as caught:
        check_traceable(config)
    assert caught.value.hint


@pytest.mark.parametrize(
    "config",
    [
        llama(rope_type="default"),
        llama(rope_type="linear", factor=2.0),
        llama(rope_type="yarn", factor=4.0, original_max_position_embeddings=512),
        Qwen2Config(use_sliding_window=True, sliding_window=64, max_window_layers=2),
        DebertaV2Config(),
    ],
)
def test_what_one_trace_computes_is_taken(config: Any) -> None:
    check_traceable(config)


@pytest.mark.parametrize("config", [MistralConfig, Phi3Config, GemmaConfig], ids=lambda value: value.__name__)
def test_architectures_that_are_not_known_are_refused_at_once(config: Any, tmp_path: Path) -> None:
    """Their windows, caps and factors were never compared with PyTorch: no weights are read."""
    config().save_pretrained(tmp_path)
    with pytest.raises(ExportError, match="is not supported"):
        look_at(tmp_path)


DEBERTA_V3 = {"relative_attention": True, "position_buckets": 256, "max_relative_positions": -1}


@pytest.mark.parametrize(
    ("config", "max_tokens", "expected"),
    [
        (Qwen2Config(use_sliding_window=True, sliding_window=8, max_window_layers=1), 32, [8, 9]),
        (Qwen2Config(use_sliding_window=True, sliding_window=32, max_window_layers=1), 32, [32]),
        (Qwen2Config(use_sliding_window=True, sliding_window=4096, max_window_layers=1), 32, []),
        (Qwen2Config(), 32, []),
        (DebertaV2Config(**DEBERTA_V3), 512, [129, 130, 512]),
        (DebertaV2Config(**DEBERTA_V3), 128, []),
        (DebertaV2Config(relative_attention=True, max_relative_positions=20), 64, [20, 21]),
        (DebertaV2Config(relative_attention=False), 512, []),
        (MPNetConfig(), 512, [8, 9, 128, 129]),
    ],
)
def test_border_lengths(config: Any, max_tokens: int, expected: list[int]) -> None:
    assert border_lengths(config, max_tokens) == expected


@pytest.mark.parametrize(
    ("kind", "options", "lengths"),
    [
        ("qwen2-sliding", {"task": "classify-prompt", "max_tokens": 64}, {1, WINDOW, WINDOW + 1, 64}),
        pytest.param("deberta", {"task": "classify-head", "max_tokens": 64}, {1, 5, 6, 64}, marks=pytest.mark.slow),
    ],
)
def test_golden_vectors_hold_the_borders(
    tiny_export: Callable[..., Bundle], kind: str, options: dict[str, Any], lengths: set[int]
) -> None:
    """Rows at each border, alone in their length and padded to the longest row."""
    batches = [case.batch for case in golden_cases(tiny_export(kind, splits=(1, 2), **options))]
    assert lengths <= {batch.input_ids.shape[1] for batch in batches}
    mixed = batches[-1].attention_mask.sum(axis=1).tolist()
    assert mixed == [64, 1, min(lengths - {1})]


def test_a_model_that_is_refused_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The refusal comes before weights, tokenizer and trace."""
    from export.bundle.bundle_writer import export_bundle
    from export.bundle.options import ExportOptions
    from export.model.options import LoraOptions, TaskOptions

    folder = make_model("llama", tmp_path / "model")
    monkeypatch.delattr("export.model.build.load_model")
    llama(rope_type="dynamic", factor=2.0).save_pretrained(folder)
    task = TaskOptions("classify-head", ["no", "yes"], None, None, 16, None, None, None)
    options = ExportOptions(task, LoraOptions(4, 8.0, ["q_proj"], None, ["B"], seed=0), [1])
    with pytest.raises(ExportError, match="rope_type is 'dynamic'"):
        export_bundle(look_at(folder), options, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
