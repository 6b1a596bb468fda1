"""Answers of a device that is not to be believed: what of them the server hands on to who asked."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any, cast

import pytest

from edge_runtime.errors import ProtocolError
from edge_runtime.protocol.predictions import Predicted
from server.fleet.predict_requests import Waiting
from server.queue.prediction_operations import PredictionOperations


class Asker:
    """Has an answer already."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def ask(self, device: str, body: bytes, patience_s: float) -> Waiting:
        answer: Future[Predicted] = Future()
        answer.set_result(Predicted(request="1", device=device, code=0, what="", hint="", body=self._body))
        return Waiting(device, "1", patience_s, body, answer)

    def drop(self, waiting: Waiting) -> None:
        assert waiting.answer.done()


def answered(body: bytes) -> dict[str, Any]:
    known = SimpleNamespace(birth=SimpleNamespace(predicts=True), quarantine=None, is_here=True, state="online")
    coordinator = cast("Any", SimpleNamespace(devices={"pi": known}, predictions=Asker(body)))
    operations = PredictionOperations(coordinator, cast("Any", None), "default")
    return asyncio.run(operations.predict("pi", {"text": "a"}, 60.0))


CLASSIFIED = {"text": "a", "label": "good", "probabilities": {"bad": 0.25, "good": 0.75}}


@pytest.mark.parametrize("prediction", [CLASSIFIED, {"prompt": "a", "completion": " b"}])
def test_an_answer_is_handed_on_as_it_is(prediction: dict[str, Any]) -> None:
    answer = {"bundle_sha256": "0", "predictions": [prediction], "generation": {"seed": 1}}
    assert answered(json.dumps(answer).encode()) == answer


@pytest.mark.parametrize(
    "answer",
    [
        [],
        {},
        {"predictions": {}},
        {"predictions": ["a"]},
        {"predictions": [{}]},
        {"predictions": [{"text": "a", "label": "good"}]},
        {"predictions": [CLASSIFIED | {"probabilities": {"bad": 1.0}}]},
        {"predictions": [CLASSIFIED | {"probabilities": {"good": "all"}}]},
        {"predictions": [CLASSIFIED | {"completion": " b"}]},
        {"predictions": [{"prompt": "a"}]},
        {"predictions": [{"label": "good", "probabilities": {"good": 1.0}}]},
    ],
)
def test_an_answer_that_no_command_could_print_is_the_devices_fault(answer: object) -> None:
    with pytest.raises(ProtocolError, match="the answer of pi cannot be read"):
        answered(json.dumps(answer).encode())


def test_an_endless_answer_is_the_devices_fault() -> None:
    with pytest.raises(ProtocolError, match="the answer of pi cannot be read"):
        answered(b'{"predictions": [], "more": ' + b"[" * 50_000 + b"]" * 50_000 + b"}")
