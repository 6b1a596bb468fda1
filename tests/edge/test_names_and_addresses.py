"""Names and addresses: refused where no message or request could be sent to them."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.agent.config import read_edge_config
from edge_runtime.errors import ConfigError, NetworkError, ProtocolError
from edge_runtime.network.address import parse_broker
from edge_runtime.network.fetch import blob_base
from edge_runtime.network.http_address import check_http_url, https_url
from edge_runtime.protocol.topics import device_of, topic_for


@pytest.mark.parametrize(
    "url",
    [
        "http://[::1:8080",
        "http://server/früh",
        "http://server..local",
        "http://.local",
        "http://früh.local",
        "http://server:99999",
        "http://server:port",
        "http://a b/",
        "http://server/a b",
        "http://server/\n",
        "http://user@server",
        "http://server?x=1",
        "http://server#x",
        "http://",
        "ftp://server",
        "server:8080",
        "",
        f"http://{'x' * 64}.local",
    ],
)
def test_an_address_that_no_request_can_be_sent_to_is_refused_everywhere(tmp_path: Path, url: str) -> None:
    from server.cli import main

    with pytest.raises(ConfigError, match="is not an http address"):
        check_http_url(url)
    if url != "http://":  # a plan's address may lack the host
        with pytest.raises(NetworkError):
            blob_base(url + "/blobs", "broker", None)
    if url:
        config = tmp_path / "edge.toml"
        config.write_text(
            f'name = "pi"\nbroker = "mqtt://x"\nserver_url = {json.dumps(url)}\n[data]\npath = "rows.jsonl"\n'
        )
        with pytest.raises(ConfigError, match="is not an http address"):
            read_edge_config(config)
    assert main(["serve", "--public-url", url]) == ConfigError.exit_code


@pytest.mark.parametrize(
    "url",
    ["http://server:8080", "https://server.example./covey/", "http://[fe80::1%25eth0]:80", "http://10.0.0.1/a%20b"],
)
def test_a_good_address_loses_its_last_slash_only(url: str) -> None:
    assert check_http_url(url) == url.rstrip("/")


@given(
    host=st.one_of(
        st.text(max_size=30),
        st.sampled_from(
            ["0/", "a:1@b", "a?x", "a#", "[::1]", "::1", "fe80::1%25eth0", "a\\b", "xn--bcher-kva.example", ""]
        ),
    ),
    port=st.integers(1, 65535),
)
def test_an_address_that_is_made_of_a_host_leads_to_that_host_and_port(host: str, port: int) -> None:
    try:
        url = https_url(host, port)
    except ConfigError as error:
        assert repr(host) in error.what  # noqa: PT017 what is taken is looked at below
        return
    parts = urlsplit(url)
    assert (parts.hostname, parts.port, parts.path, parts.username) == (host.lower(), port, "", None)


@pytest.mark.parametrize("host", ["0/", "a/b", "a:1@b", "server?x", ""])
def test_a_fleet_is_not_made_for_what_is_no_host(tmp_path: Path, capsys: pytest.CaptureFixture[str], host: str) -> None:
    from server.cli import main

    for hosts in ((host,), ("server.local", host)):
        flags = [word for one in hosts for word in ("--host", one)]
        assert main(["fleet", "init", "--state-dir", str(tmp_path), *flags]) == ConfigError.exit_code
        assert f"{host!r} cannot be the name of a host" in capsys.readouterr().err
        assert not any(tmp_path.iterdir())


@given(url=st.one_of(st.text(max_size=30), st.text(max_size=20).map("http://".__add__)))
def test_an_address_that_is_taken_can_be_asked(url: str) -> None:
    try:
        taken = check_http_url(url)
    except ConfigError:
        return
    request = urllib.request.Request(f"{taken}/blobs/{'0' * 64}")  # noqa: S310 nothing is sent
    assert request.host.encode("ascii")
    request.host.split(":")[0].encode("idna")
    assert request.selector.encode("ascii")


def test_a_plan_without_a_host_means_the_brokers_host_in_ipv6_too() -> None:
    assert blob_base("http://:8080/blobs", "::1", None) == "http://[::1]:8080/blobs"


@pytest.mark.parametrize(
    "url", ["mqtt://[::1:1883", "mqtt://server:port", "mqtt://", "http://server", "mqtt://x:70000"]
)
def test_a_brokers_address_that_is_none_is_named(url: str) -> None:
    with pytest.raises(ConfigError, match="broker"):
        parse_broker(url)


@pytest.mark.parametrize("name", ["pi\n", "pi\r", "\x1b[2J", "pi\x00", "", "-pi", "a" * 64, "#", "a b"])
def test_a_name_ends_where_it_seems_to_end(tmp_path: Path, name: str) -> None:
    with pytest.raises(ProtocolError, match="cannot be the name"):
        topic_for("default", name, "birth")
    with pytest.raises(ProtocolError, match="cannot be the name"):
        device_of(f"covey/v1/default/{name}/birth")
    config = tmp_path / "edge.toml"
    config.write_text(f'name = {json.dumps(name)}\nbroker = "mqtt://x"\n[data]\npath = "rows.jsonl"\n')
    with pytest.raises(ConfigError, match=r"name|cannot"):
        read_edge_config(config)


def test_a_topic_without_a_device_is_an_error() -> None:
    with pytest.raises(ProtocolError, match="names no device"):
        device_of("covey/v1/default")
