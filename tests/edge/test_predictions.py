"""The device's own HTTP endpoint: it answers with the model in use, takes corrections, and has bounds."""

from __future__ import annotations

import contextlib
import itertools
import json
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from fleets import wait_for
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from predicting import ask, leave_model

from edge_runtime import cli as edge_cli
from edge_runtime.bundle.adapter import adapter_sha256
from edge_runtime.bundle.folder import Bundle
from edge_runtime.data.config import DataConfig
from edge_runtime.engines.choose import Engines
from edge_runtime.engines.predict import predict
from edge_runtime.errors import TrainingError
from edge_runtime.predictions import http_server
from edge_runtime.predictions.http_request import MOST_BODY_BYTES
from edge_runtime.predictions.http_server import Endpoint
from edge_runtime.predictions.limits import MinuteLimit, TooManyError
from edge_runtime.predictions.rules import PredictRules
from edge_runtime.predictions.service import PredictionService

ENGINES = Engines(threads=1)


class Device:
    """A device's state directory with a model, and an endpoint on it; its clock stands still."""

    def __init__(self, root: Path, bundle: Bundle, free_bytes: int | None = None, **rules: Any) -> None:
        self.root, self.bundle, self.now = root, bundle, 0.0
        self.store = leave_model(root / "state", bundle)
        self.corrections = root / "corrections.jsonl"
        data = DataConfig(str(root / "rows.jsonl"), corrections=str(self.corrections), most_corrections=5)
        self.service = PredictionService(
            self.store, data, ENGINES, PredictRules(**rules), lambda: free_bytes, lambda: self.now
        )
        self.endpoint = Endpoint("127.0.0.1:0", self.service, rules.get("token"))

    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.corrections.read_text().splitlines()]


MakesDevice = Callable[..., Device]


@pytest.fixture
def device_of(tmp_path: Path, tiny_bundle: Bundle) -> Iterator[MakesDevice]:
    made: list[Device] = []
    numbers = itertools.count()

    def make(bundle: Bundle | None = None, **fields: Any) -> Device:
        made.append(Device(tmp_path / f"device-{next(numbers)}", bundle or tiny_bundle, **fields))
        return made[-1]

    yield make
    for device in made:
        device.endpoint.close()


def test_texts_get_labels_and_the_hashes_of_the_model(device_of: MakesDevice, tiny_bundle: Bundle) -> None:
    device = device_of()
    port, theta = device.endpoint.port, tiny_bundle.initial_adapter()
    assert ask(port, "/healthz", None, "GET")[:2] == (200, {"status": "ok"})
    for text, texts in (("a good film", ["a good film"]), (["a bad film", "so long"], ["a bad film", "so long"])):
        status, answer, _ = ask(port, "/predict", {"text": text})
        assert status == 200
        assert answer["bundle_sha256"] == tiny_bundle.sha256
        assert answer["adapter_sha256"] == adapter_sha256(theta)
        assert answer["personal_sha256"] is None
        wanted = predict(tiny_bundle, theta, texts, ENGINES)
        assert [(p["text"], p["label"]) for p in answer["predictions"]] == [(p.text, p.label) for p in wanted]
        for found, one in zip(answer["predictions"], wanted, strict=True):
            assert found["probabilities"] == pytest.approx(one.probabilities, abs=1e-5)


def test_the_next_adapter_answers_once_it_is_there(device_of: MakesDevice, tiny_bundle: Bundle) -> None:
    device = device_of()
    before = ask(device.endpoint.port, "/predict", {"text": "a film"})[1]
    theta = tiny_bundle.initial_adapter() + np.float32(0.05)
    leave_model(device.store.root, tiny_bundle, theta)
    after = ask(device.endpoint.port, "/predict", {"text": "a film"})[1]
    assert after["adapter_sha256"] == adapter_sha256(theta) != before["adapter_sha256"]
    wanted = predict(tiny_bundle, theta, ["a film"], ENGINES)[0].probabilities
    assert after["predictions"][0]["probabilities"] == pytest.approx(wanted, abs=1e-5)


def test_in_a_jobs_first_round_the_bundles_own_adapter_answers(device_of: MakesDevice, tiny_bundle: Bundle) -> None:
    device = device_of()
    sha256 = adapter_sha256(tiny_bundle.initial_adapter())
    device.store.forget_adapter(sha256)  # the journal names it, and no file of it was ever needed
    status, answer, _ = ask(device.endpoint.port, "/predict", {"text": "a film"})
    assert (status, answer["adapter_sha256"]) == (200, sha256)
    device.store.write_journal(msgspec.structs.replace(device.store.journal(), adapter_sha256="0" * 64))
    assert ask(device.endpoint.port, "/predict", {"text": "a film"})[0] == 503


def test_a_causal_model_continues_prompts(device_of: MakesDevice, tiny_export: Callable[..., Bundle]) -> None:
    device = device_of(tiny_export("llama", task="causal-lm"), max_new_tokens=3)
    port = device.endpoint.port
    status, answer, _ = ask(port, "/predict", {"text": ["the film was"], "max_new_tokens": 2})
    assert status == 200
    assert set(answer["predictions"][0]) == {"prompt", "completion"}
    assert (answer["generation"]["new_tokens"], answer["generation"]["cached"]) == (2, True)
    status, answer, _ = ask(port, "/predict", {"text": "the film", "max_new_tokens": 4})
    assert (status, answer["error"]) == (400, "4 new tokens are asked for, 3 are allowed")
    assert ask(port, "/predict", {"text": "the film"})[0] == 200
    assert ask(port, "/feedback", {"prompt": "the film was", "completion": "good"})[0] == 200
    assert ask(port, "/feedback", {"text": "the film", "label": "good"})[0] == 400
    assert device.rows() == [{"prompt": "the film was", "completion": "good"}]


def test_requests_draw_tokens_as_the_command_does(
    device_of: MakesDevice, tiny_export: Callable[..., Bundle], capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tiny_export("llama", task="causal-lm")
    port = device_of(bundle).endpoint.port
    drawing = {"max_new_tokens": 8, "temperature": 0.9, "top_p": 0.95, "seed": 6}
    status, answer, _ = ask(port, "/predict", {"text": ["the film", "it"], **drawing})
    assert (status, answer["generation"]["seed"]) == (200, 6)
    flags = [word for name, value in drawing.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    assert edge_cli.main(["predict", "--bundle", str(bundle.path), *flags, "--format", "json", "the film", "it"]) == 0
    assert json.loads(capsys.readouterr().out)["predictions"] == answer["predictions"]
    for wrong in ({"temperature": -1}, {"top_p": 0.5}, {"temperature": 1, "top_p": 0}, {"seed": -1}, {"seed": "x"}):
        status, answer, _ = ask(port, "/predict", {"text": "the film", **wrong})
        assert (status, answer["exit_code"]) == (400, 4)
    too_long = {"text": " very" * 100}
    status, answer, _ = ask(port, "/predict", too_long)
    assert (status, answer["error"]) == (
        400,
        "the prompt is 100 tokens long: the model has 64 positions, and one is for an answer",
    )


def test_what_the_model_cannot_continue_is_the_askers_mistake(
    device_of: MakesDevice, tiny_export: Callable[..., Bundle]
) -> None:
    port = device_of(tiny_export("llama", task="causal-lm")).endpoint.port
    for body, said in (
        ({"text": "a film", "chat": True}, "has no chat template"),
        ({"text": ""}, "has no tokens"),
    ):
        status, answer, _ = ask(port, "/predict", body)
        assert (status, answer["exit_code"], said in answer["error"]) == (400, 4, True), answer


def test_a_classifier_draws_nothing(device_of: MakesDevice) -> None:
    status, answer, _ = ask(device_of().endpoint.port, "/predict", {"text": "a film", "temperature": 0.5})
    assert status == 400
    assert "models that continue text" in answer["error"]


def test_before_the_first_round_it_says_so(device_of: MakesDevice) -> None:
    device = device_of()
    (device.store.root / "journal.json").unlink()
    for path, body in (("/predict", {"text": "a"}), ("/feedback", {"text": "a", "label": "good"})):
        status, answer, _ = ask(device.endpoint.port, path, body)
        assert (status, answer["error"], answer["exit_code"]) == (503, "this device has no adapter yet", 3)
    assert not device.corrections.exists()


def test_a_damaged_adapter_is_named(device_of: MakesDevice, tiny_bundle: Bundle) -> None:
    device = device_of()
    path = device.store.adapter_file(adapter_sha256(tiny_bundle.initial_adapter()))
    path.write_bytes(b"\x01" + path.read_bytes()[1:])
    status, answer, _ = ask(device.endpoint.port, "/predict", {"text": "a"})
    assert (status, answer["exit_code"]) == (503, 5)


def test_without_memory_for_one_more_graph_nothing_is_loaded(device_of: MakesDevice) -> None:
    device = device_of(free_bytes=1000)
    status, answer, _ = ask(device.endpoint.port, "/predict", {"text": "a"})
    assert (status, answer["exit_code"]) == (503, TrainingError.exit_code)
    assert "1000 are free" in answer["error"]


# -- corrections ----------------------------------------------------------------------------------------------------


def test_corrections_are_kept_deduplicated_and_bounded(device_of: MakesDevice) -> None:
    device = device_of()
    port = device.endpoint.port
    status, answer, _ = ask(port, "/feedback", {"text": "0", "label": "good"})
    assert (status, answer) == (200, {"added": 1, "replaced": 0, "repeated": 0, "dropped": 0, "rows": 1})
    again = [{"text": "0", "label": "bad"}, *({"text": str(n), "label": "good"} for n in range(1, 7))]
    status, answer, _ = ask(port, "/feedback", again)
    assert (status, answer) == (200, {"added": 6, "replaced": 1, "repeated": 0, "dropped": 2, "rows": 5})
    assert [row["text"] for row in device.rows()] == ["2", "3", "4", "5", "6"]


@pytest.mark.parametrize(
    "rows",
    [
        {"text": "a film"},
        {"text": "a film", "label": "ugly"},
        {"text": "a film", "label": "good", "extra": 1},
        {"text": "", "label": "good"},
        {"prompt": "a", "completion": "b"},
        [],
        [{"text": "a film", "label": "good"}, 1],
        [{"text": str(n), "label": "good"} for n in range(65)],
        "a film",
        None,
    ],
)
def test_what_the_model_could_not_learn_from_is_not_taken(device_of: MakesDevice, rows: Any) -> None:
    device = device_of()
    status, answer, _ = ask(device.endpoint.port, "/feedback", json.dumps(rows).encode())
    assert (status, answer["exit_code"]) == (400, 4)
    assert not device.corrections.exists()


def test_a_flood_of_feedback_is_told_when_to_come_again(device_of: MakesDevice) -> None:
    device = device_of(feedback_per_minute=3)
    port = device.endpoint.port
    statuses = [ask(port, "/feedback", {"text": str(n), "label": "good"}) for n in range(5)]
    assert [status for status, _, _ in statuses] == [200, 200, 200, 429, 429]
    assert statuses[-1][2]["Retry-After"] == "20"
    assert "3 corrections a minute" in statuses[-1][1]["error"]
    assert len(device.rows()) == 3
    status, _, headers = ask(port, "/feedback", [{"text": f"n{n}", "label": "good"} for n in range(4)])
    assert (status, "Retry-After" in headers) == (429, False)  # it never could be taken
    device.now += 20
    assert ask(port, "/feedback", {"text": "another", "label": "good"})[0] == 200
    assert ask(port, "/predict", {"text": "a"})[0] == 200  # a flood of feedback keeps nobody from predictions


def test_texts_have_a_limit_too(device_of: MakesDevice) -> None:
    device = device_of(texts_per_minute=2)
    assert [ask(device.endpoint.port, "/predict", {"text": "a"})[0] for _ in range(3)] == [200, 200, 429]


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(1, 6)), max_size=30), st.integers(1, 5))
def test_no_minute_takes_more_than_a_full_bucket_and_what_flows_in(
    calls: list[tuple[float, int]], per_minute: int
) -> None:
    now = 0.0
    limit = MinuteLimit("texts", per_minute, lambda: now)
    taken = 0
    for pause_s, count in calls:
        now += pause_s
        if count > per_minute:
            with pytest.raises(TooManyError) as raised:
                limit.take(count)
            assert raised.value.retry_after_s is None
            continue
        with contextlib.suppress(TooManyError):
            limit.take(count)
            taken += count
        assert taken <= per_minute * (1 + now / 60) + 1e-6


# -- who may ask, and how -------------------------------------------------------------------------------------------


def test_requests_need_the_token_where_there_is_one(device_of: MakesDevice) -> None:
    device = device_of()
    token = device.endpoint._server.token = secrets.token_hex(16)
    port, body = device.endpoint.port, {"text": "a"}
    for given_ in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": token}):
        status, _, headers = ask(port, "/predict", body, **given_)
        assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
    assert ask(port, "/predict", body, Authorization=f"Bearer {token}")[0] == 200
    assert ask(port, "/healthz", None, "GET")[0] == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "evil.example"}, 403),
        ({"Host": "[::1"}, 403),
        ({"Content_Type": "text/plain"}, 415),
        ({"Host": "localhost:1"}, 200),
    ],
)
def test_pages_of_a_browser_reach_nothing(device_of: MakesDevice, headers: dict[str, str], status: int) -> None:
    assert ask(device_of().endpoint.port, "/predict", {"text": "a"}, **headers)[0] == status


def raw(port: int, data: bytes) -> bytes:
    """Send bytes; return everything that comes back."""
    with socket.create_connection(("127.0.0.1", port), timeout=120) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while part := connection.recv(65536):
            answer += part
        return answer


_HEAD = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (_HEAD + b"\r\n", b"411"),
        (_HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"411"),
        (_HEAD + b"Content-Length: -1\r\n\r\n", b"400"),
        (_HEAD + b"Content-Length: 1e3\r\n\r\n", b"400"),
        (_HEAD + b"Content-Length: " + str(MOST_BODY_BYTES + 1).encode() + b"\r\n\r\n", b"413"),
        (_HEAD + b"Content-Length: 99999999999999999999\r\n\r\n", b"400"),
        (_HEAD + b'Content-Length: 50\r\n\r\n{"text": "a"}', b"400"),
        (b"GET / HTTP/1.1\r\n\r\n", b"404"),
        (b"GET /predict HTTP/1.1\r\n\r\n", b"404"),
        (b"PUT /predict HTTP/1.1\r\n\r\n", b"501"),
        (b"POST /predict HTTP/9.9\r\n\r\n", b"505"),
        (b"no http at all\r\n\r\n", b"400"),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", b"414"),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n", b"431"),
    ],
)
def test_what_is_no_request_gets_its_status_and_words(device_of: MakesDevice, data: bytes, status: bytes) -> None:
    head, _, body = raw(device_of().endpoint.port, data).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 " + status), head
    assert json.loads(body)["error"]


def test_the_body_of_a_request_that_is_too_large_does_not_hide_the_answer(device_of: MakesDevice) -> None:
    status, answer, _ = ask(device_of().endpoint.port, "/predict", b"x" * (MOST_BODY_BYTES + 1))
    assert (status, answer["hint"]) == (413, "send less at once")


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text", "label", "x"]), inner),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["/predict", "/feedback"]), st.binary(max_size=60) | ANYTHING.map(lambda v: json.dumps(v).encode())
)
def test_whatever_is_sent_the_answer_is_json_and_the_endpoint_lives(
    device_of: MakesDevice, path: str, body: bytes
) -> None:
    devices = test_whatever_is_sent_the_answer_is_json_and_the_endpoint_lives.__dict__.setdefault("devices", {})
    if device_of not in devices:
        devices[device_of] = device_of(texts_per_minute=1_000_000, feedback_per_minute=1_000_000)
    status, answer, _ = ask(devices[device_of].endpoint.port, path, body)
    assert status in (200, 400)
    assert status == 200 or answer["exit_code"] == 4


def test_connections_beyond_the_bound_are_told_and_slow_ones_end(device_of: MakesDevice) -> None:
    endpoint = device_of().endpoint
    slow = []
    for _ in range(http_server.MOST_CONNECTIONS):
        slow.append(socket.create_connection(("127.0.0.1", endpoint.port), timeout=120))
        slow[-1].sendall(b"POST /predict HTTP/1.1\r\n")
    answer = raw(endpoint.port, b"")
    assert answer.startswith(b"HTTP/1.1 503")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"] == "too many connections at once"
    endpoint._server._clock = lambda: time.monotonic() + http_server.LONGEST_ARRIVAL_S + 1.0
    for connection in slow:
        while connection.recv(4096):  # until the endpoint has ended it
            pass
        connection.close()
    # A place is free a moment after its connection has ended.
    wait_for(lambda: ask(endpoint.port, "/predict", {"text": "a"})[0] == 200, "a free place")


def test_many_at_once_get_the_same_as_one_after_the_other(device_of: MakesDevice) -> None:
    port = device_of().endpoint.port
    alone = [ask(port, "/predict", {"text": f"film {n}"})[1] for n in range(8)]
    together: dict[int, Any] = {}

    def one(number: int) -> None:
        together[number] = ask(port, "/predict", {"text": f"film {number}"})[1]

    threads = [threading.Thread(target=one, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[number] for number in range(8)] == alone
