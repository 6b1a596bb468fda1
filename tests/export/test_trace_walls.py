"""Whatever exception a model raises while it is traced or lowered, the export ends in its own error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from tiny_models import make_model

from export.errors import ExportError
from export.graphs.xnnpack import _attention
from export.model.build import build
from export.model.options import LoraOptions, TaskOptions
from export.source.folder import look_at
from export.trace.gradients import trace_training
from export.trace.loss import trace

if TYPE_CHECKING:
    from pathlib import Path

    from export.model.build import ExportModel

TASK = TaskOptions("classify-head", ["no", "yes"], None, None, 16, None, None, None)
LORA = LoraOptions(4, 8.0, ["query"], None, ["B"], seed=0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ExportModel:
    path: Path = make_model("bert", tmp_path_factory.mktemp("walls") / "model")
    return build(look_at(path), TASK, LORA)


@pytest.mark.parametrize(
    "error", [NotImplementedError("a stub"), KeyError("x"), AttributeError("x"), RecursionError(), AssertionError("x")]
)
def test_an_exception_of_the_model_is_an_error_of_the_export(
    model: ExportModel, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(torch.export, "export", fail)
    with pytest.raises(ExportError, match=f"cannot trace the model: {type(error).__name__}"):
        trace(model)
    with pytest.raises(ExportError, match="cannot differentiate the model with 1 layers"):
        trace_training(model, 1, set())


def test_an_error_of_the_exports_own_passes_as_it_is(model: ExportModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise ExportError("its own", "its own hint")

    monkeypatch.setattr(torch.export, "export", fail)
    with pytest.raises(ExportError, match=r"^its own"):
        trace(model)


@pytest.mark.parametrize("odd", [{"dropout_p": 0.1}, {"is_causal": True}, {"enable_gqa": True}])
def test_attention_that_executorch_cannot_run_is_said(odd: dict[str, Any]) -> None:
    q = torch.zeros(1, 1, 2, 4)
    with pytest.raises(ExportError, match="ExecuTorch cannot run attention"):
        _attention(q, q, q, **odd)
