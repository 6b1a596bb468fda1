"""Whether messages arrive: asked at a real mosquitto whose access list drops some without a word."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from fleets import free_port, has_mosquitto, mosquitto

from edge_runtime.network.address import BrokerAddress
from edge_runtime.network.echo import comes_back, kept_message
from edge_runtime.network.mqtt import MqttTransport

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.mosquitto,
    pytest.mark.skipif(not has_mosquitto(), reason="mosquitto is not installed: apt-get install mosquitto"),
]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerAddress]:
    folder: Path = tmp_path_factory.mktemp("echo")
    access = folder / "access"
    access.write_text("topic readwrite both\ntopic write write-only\ntopic read read-only\ntopic readwrite kept/#\n")
    config = f"listener {{port}} 127.0.0.1\nallow_anonymous true\nacl_file {access}\n"
    access.chmod(0o600)
    with mosquitto(folder / "run", config) as port:
        yield BrokerAddress("127.0.0.1", port, tls=False, username=None, password=None)


@pytest.mark.parametrize(("topic", "arrives"), [("both", True), ("write-only", False), ("read-only", False)])
def test_a_message_comes_back_or_is_swallowed(address: BrokerAddress, topic: str, arrives: bool) -> None:
    assert comes_back(address, "covey-echo", None, topic, timeout_s=10.0 if arrives else 1.0) is arrives


def test_a_kept_message_is_found_and_none_is_none(address: BrokerAddress) -> None:
    transport = MqttTransport(address, "covey-keeper", keep_session=False)
    for topic in ("kept/open", "write-only"):
        assert transport.deliver(topic, b"word")
    transport.close()
    assert kept_message(address, "covey-echo", None, "kept/open", timeout_s=10.0) == b"word"
    assert kept_message(address, "covey-echo", None, "write-only", timeout_s=1.0) is None
    assert kept_message(address, "covey-echo", None, "kept/nothing", timeout_s=1.0) is None


def test_a_broker_that_is_away_returns_nothing() -> None:
    nobody = BrokerAddress("127.0.0.1", free_port(), tls=False, username=None, password=None)
    assert not comes_back(nobody, "covey-echo", None, "both", timeout_s=1.0)
    assert kept_message(nobody, "covey-echo", None, "both", timeout_s=1.0) is None
