"""``covey device predict`` with a temperature: texts of many requests draw what ``covey-edge predict`` draws."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, Self

import pytest
from predicting import leave_model

from edge_runtime import cli as edge_cli
from edge_runtime.data.config import DataConfig
from edge_runtime.engines.choose import Engines
from edge_runtime.errors import DataError
from edge_runtime.predictions.rules import PredictRules
from edge_runtime.predictions.service import PredictionService, read_ask
from server import cli

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle

DRAWN = ("--temperature", "1.5", "--seed", "3", "--max-new-tokens", "4")
TEXTS = ["the film was"] * 10


class Server:
    """Hands each request to the device, as the server does."""

    def __init__(self, service: PredictionService, *, is_old: bool = False) -> None:
        self._service, self._is_old = service, is_old
        self.bodies: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def ask(self, method: str, path: str, body: dict[str, Any], more_s: float) -> dict[str, Any]:
        del method, path, more_s
        self.bodies.append(body)
        if self._is_old and "first" in body:
            raise DataError("pi: this is no request: Object contains unknown field `first`", "send")
        return self._service.predict(read_ask(json.dumps(body).encode()))


@pytest.fixture
def bundle(tiny_export: Callable[..., Bundle]) -> Bundle:
    return tiny_export("llama", task="causal-lm")


@pytest.fixture
def service(tmp_path: Path, bundle: Bundle) -> PredictionService:
    store = leave_model(tmp_path / "state", bundle)
    return PredictionService(
        store,
        DataConfig(str(tmp_path / "rows.jsonl")),
        Engines(threads=1),
        PredictRules(),
        lambda: None,
        time.monotonic,
    )


def completions(out: str) -> list[str]:
    return [one["completion"] for line in out.splitlines() for one in json.loads(line)["predictions"]]


def test_texts_of_a_second_request_draw_on(
    service: PredictionService,
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server = Server(service)
    monkeypatch.setattr("server.commands.device_predict.open_client", lambda _args: server)
    assert cli.main(["device", "predict", "pi", *TEXTS, *DRAWN, "--format", "json"]) == 0
    asked = completions(capsys.readouterr().out)
    assert [(len(body["text"]), body.get("first")) for body in server.bodies] == [(8, None), (2, 8)]
    assert edge_cli.main(["predict", "--bundle", str(bundle.path), *TEXTS, *DRAWN, "--format", "json"]) == 0
    assert asked == completions(capsys.readouterr().out)
    assert asked[8:] != asked[:2]


def test_without_draws_older_devices_are_asked_as_before_and_with_them_told_apart(
    service: PredictionService, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = Server(service, is_old=True)
    monkeypatch.setattr("server.commands.device_predict.open_client", lambda _args: server)
    assert cli.main(["device", "predict", "pi", *TEXTS, "--max-new-tokens", "4"]) == 0
    assert all("first" not in body for body in server.bodies)
    assert cli.main(["device", "predict", "pi", *TEXTS, *DRAWN]) == 3
    assert "the Covey of pi is too old" in capsys.readouterr().err
