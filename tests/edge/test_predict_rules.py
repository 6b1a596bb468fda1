"""``[predict]`` of edge.toml: what may listen where, and what ends the start."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_runtime.cli import main
from edge_runtime.predictions.rules import PredictRules, address_of
from edge_runtime.predictions.service import Ask


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"listen": "0.0.0.0:8090"}, "which other machines reach: write 127.0.0.1"),
        ({"listen": "192.0.2.1:8090", "allow_remote": True}, "there is no token_file"),
        ({"listen": "here:8090"}, "is not an IP address and a port"),
        ({"listen": "127.0.0.1"}, "is not an IP address and a port"),
        ({"listen": "::1:80"}, "is not an IP address and a port"),
        ({"listen": "127.0.0.1:65536"}, "is not an IP address and a port"),
        ({"listen": "127.0.0.1:٣"}, "is not an IP address and a port"),
        ({"feedback_per_minute": 0}, "feedback_per_minute"),
        ({"lisen": "127.0.0.1:1"}, "lisen"),
    ],
)
def test_a_wrong_table_is_refused(table: dict[str, Any], words: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=words):
        msgspec.convert(table, PredictRules)


def test_addresses() -> None:
    assert (address_of("localhost:1").host, address_of("[::1]:2").host) == ("127.0.0.1", "::1")
    assert address_of("[::1]:2").is_loopback
    assert not address_of("[::]:2").is_loopback


def test_a_token_that_others_can_read_and_a_port_in_use_end_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    taken = listener.getsockname()[1]
    (tmp_path / "rows.jsonl").write_text('{"text": "a film", "label": "good"}\n')
    token, config = tmp_path / "token", tmp_path / "edge.toml"
    plain = 'name = "pi"\nbroker = "mqtt://127.0.0.1:1"\n[data]\npath = "rows.jsonl"\n[predict]\n'
    remote = plain + 'listen = "0.0.0.0:0"\nallow_remote = true\ntoken_file = "token"\n'
    for text, content, mode, words in (
        (remote, None, None, "cannot read"),
        (remote, "0123456789abcdef", 0o644, "others can read"),
        (remote, "short", 0o600, "has no token of at least 16 characters"),
        (remote, "two words and more", 0o600, "has no token of at least 16 characters"),
        (remote, "0123456789abcdéf", 0o600, "other characters than ASCII"),
        (plain + f'listen = "127.0.0.1:{taken}"\n', None, None, f"cannot listen on 127.0.0.1:{taken}"),
    ):
        config.write_text(text)
        if content is not None:
            token.write_text(content)
            token.chmod(mode or 0)
        assert main(["run", "--config", str(config)]) == 3
        assert words in capsys.readouterr().err
    listener.close()


def test_an_ask_is_one_text_or_several() -> None:
    assert Ask("a").texts == ["a"]
    assert Ask(["a", "b"]).texts == ["a", "b"]
