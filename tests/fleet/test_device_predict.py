"""``covey device predict``: real processes, TLS, members only; the answer is that of ``covey-edge predict``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from fleets import wait_for
from predicting import leave_model
from relay import relay_to
from trusted import TrustedFleet

from edge_runtime.network.address import BrokerAddress
from edge_runtime.network.mqtt import MqttTransport
from edge_runtime.protocol.messages import encode_message
from edge_runtime.protocol.predictions import Predict
from edge_runtime.protocol.topics import topic_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle

TEXTS = ("a good film", "so long", "ünïcode 🎬")
PRIVATE = "a text that only its asker knows"


@pytest.fixture
def fleet(tmp_path: Path, tiny_bundle: Bundle) -> Iterator[TrustedFleet]:
    made = TrustedFleet(tmp_path, tiny_bundle)
    made.open()
    yield made
    made.stop()


def answering(fleet: TrustedFleet, name: str, **rules: Any) -> Path:
    """Let a device join that answers the server."""
    config = fleet.join(name)
    given = "".join(f"{key} = {value}\n" for key, value in rules.items())
    config.write_text(f"{config.read_text()}\n[predict]\nanswer_server = true\n{given}")
    return config


def online(fleet: TrustedFleet, *names: str) -> None:
    wait_for(lambda: all(fleet.states().get(name) == "online" for name in names), f"{names} online")


def of_the_device(config: Path, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "edge_runtime.cli", "predict", "--config", str(config), *arguments]
    done = subprocess.run([*command, "--format", "json"], capture_output=True, text=True, check=True, timeout=300)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.slow
def test_the_answer_is_that_of_the_device_and_no_text_is_logged(fleet: TrustedFleet, tiny_bundle: Bundle) -> None:
    config = answering(fleet, "a")
    leave_model(config.with_name("covey-state"), tiny_bundle)
    off = fleet.join("off")
    leave_model(off.with_name("covey-state"), tiny_bundle)
    answering(fleet, "new")  # has no adapter yet
    device, *_ = [fleet.start(name) for name in ("a", "off", "new")]
    online(fleet, "a", "off", "new")

    answer = fleet.covey("device", "predict", "a", *TEXTS, PRIVATE)
    expected = of_the_device(config, *TEXTS, PRIVATE)
    assert answer["predictions"] == expected["predictions"]
    assert answer["bundle_sha256"] == expected["bundle_sha256"] == tiny_bundle.sha256
    assert answer["adapter_sha256"] is not None

    def refused(code: int, *arguments: str) -> str:
        said = fleet.covey("device", "predict", *arguments, code=code)
        return f"{said['error']}; {said['hint']}"

    assert "answer_server = true" in refused(3, "off", PRIVATE)
    assert "no device nobody" in refused(3, "nobody", PRIVATE)
    assert "new: this device has no adapter yet" in refused(3, "new", PRIVATE)
    assert "--timeout" in refused(3, "a", PRIVATE, "--timeout", "0")
    assert "fit into a message" in refused(4, "a", "x" * 100_001)
    assert "not in UTF-8" in refused(4, "a", os.fsdecode(b"half \xc3"))
    assert "65 new tokens are asked for" in refused(4, "a", PRIVATE, "--max-new-tokens", "65")
    assert "unknown field" in _answer_of_api(fleet, {"text": PRIVATE, "colour": "red"})["error"]
    assert "body is no JSON" in _answer_of_api(fleet, {"text": "half \ud83c"})["error"]
    many = fleet.lines("device", "predict", "a", *[f"film {number}" for number in range(65)])
    assert [len(line["predictions"]) for line in many] == [64, 1]

    # Nobody but the server may ask: the broker drops what another member publishes there, and the device believes none.
    own = fleet.tls_files("off")
    thief = MqttTransport(
        BrokerAddress("127.0.0.1", fleet.port, tls=True, username=None, password=None), "covey-default-off-2", tls=own
    )
    thief.publish(topic_for("default", "a", "predict"), encode_message(Predict(request="f", patience_s=60, body=b"{}")))
    thief.close()

    device.popen.terminate()
    assert device.popen.wait(120) == 0
    wait_for(lambda: fleet.states()["a"] == "offline", "a to be offline")
    assert "a is not here: offline" in refused(7, "a", PRIVATE)
    for process in fleet.processes:
        assert PRIVATE not in process.stderr.read_text() + process.stdout.read_text()
    for kept in config.with_name("covey-state").glob("*log*"):
        assert PRIVATE.encode() not in kept.read_bytes()


def _answer_of_api(fleet: TrustedFleet, body: dict[str, Any]) -> dict[str, Any]:
    import httpx

    from server.client.address import socket_path

    transport = httpx.HTTPTransport(uds=str(socket_path(fleet.state_dir)))
    with httpx.Client(base_url="http://covey", transport=transport, timeout=300) as client:
        answer: dict[str, Any] = client.post(
            "/api/v1/devices/a/predict", content=json.dumps(body), headers={"content-type": "application/json"}
        ).json()
    return answer


def test_a_cut_connection_delays_the_answer_and_a_silent_one_ends_with_an_error(
    fleet: TrustedFleet, tiny_bundle: Bundle
) -> None:
    with relay_to(fleet.port) as relay:
        config = answering(fleet, "a")
        text = config.read_text()
        assert text.count(f":{fleet.port}") == 1
        config.write_text(text.replace(f":{fleet.port}", f":{relay.port}"))
        leave_model(config.with_name("covey-state"), tiny_bundle)
        fleet.start("a")
        online(fleet, "a")
        first = fleet.covey("device", "predict", "a", "a good film")

        relay.fall_silent()  # both sides think that the connection is there
        error = fleet.covey("device", "predict", "a", "a good film", "--timeout", "1", code=7)["error"]
        assert "a did not answer within 1 s; it is" in error

        with ThreadPoolExecutor(1) as pool:
            vanished = relay.vanished_bytes
            later = pool.submit(
                fleet.covey, "device", "predict", "a", "a good film", "long " * 1000, "--timeout", "300"
            )
            wait_for(lambda: relay.vanished_bytes > vanished + 5000, "the request to vanish")
            relay.speak()
            relay.cut()
            assert later.result(300)["predictions"][0] == first["predictions"][0]
