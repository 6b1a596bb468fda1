"""docs/brokers: EMQX and RabbitMQ get what mosquitto gets; RabbitMQ is run where it is installed."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fleets import free_port, wait_for
from trusted import TrustedFleet

from edge_runtime.network.access import check_access
from edge_runtime.network.address import BrokerAddress, TlsFiles
from edge_runtime.network.mqtt_client import make_client
from server.trust.authority import server_name
from server.trust.mosquitto import DEVICE_READS, DEVICE_WRITES, access_list

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edge_runtime.bundle.folder import Bundle

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "brokers"
RABBITMQ = Path("/usr/lib/rabbitmq/bin")
OWN = "covey/v1/default"


def text_of(name: str, comment: str = "#") -> str:
    """Return a file without its comments."""
    return "\n".join(line.partition(comment)[0].rstrip() for line in (FOLDER / name).read_text().splitlines())


def mosquitto_rules() -> dict[str, set[str]]:
    """Return what mosquitto's access list lets a device do, by action."""
    found: dict[str, set[str]] = {"write": set(), "read": set()}
    for line in access_list("default").splitlines():
        if line.startswith("pattern"):
            _, action, topic = line.split()
            found[action].add(topic)
    return found


# -- EMQX -----------------------------------------------------------------------------------------------------------


def test_emqx_has_the_topics_of_mosquittos_list() -> None:
    text = text_of("emqx-acl.conf", "%%")
    rules = re.findall(r"\{allow, all, (publish|subscribe), \[(.*?)\]\}\.", text, re.DOTALL)
    found = {action: {t.replace("${username}", "%u") for t in re.findall(r'"([^"]+)"', body)} for action, body in rules}
    expected = mosquitto_rules()
    assert found == {"publish": expected["write"], "subscribe": expected["read"]}
    (server,) = re.findall(r'\{allow, \{username, "([^"]+)"\}, all, \["([^"]+)"\]\}', text)
    assert server == (server_name("default"), f"{OWN}/#")
    assert text.split()[-2:] == ["{deny,", "all}."]
    assert text.count("{allow") == 3


def test_emqx_asks_for_certificates_and_takes_their_names() -> None:
    text = text_of("emqx.conf")
    for line in (
        'versions = ["tlsv1.3"]',
        "verify = verify_peer",
        "fail_if_no_peer_cert = true",
        "peer_cert_as_username = cn",
        "no_match = deny",
        "listeners.tcp.default.enable = false",
        'path = "/etc/emqx/covey/emqx-acl.conf"',
    ):
        assert line in text
    assert text.count("{") == text.count("}")


# -- RabbitMQ -------------------------------------------------------------------------------------------------------


def variables() -> dict[str, str]:
    return dict(
        re.findall(r"^([A-Z]+)='?([^'\n]*?)'?(?:\s+#.*)?$", (FOLDER / "rabbitmq-users.sh").read_text(), re.MULTILINE)
    )


def test_rabbitmq_has_the_topics_of_mosquittos_list() -> None:
    """In RabbitMQ's words: dots for slashes, in regular expressions."""
    found = variables()
    assert tuple(found["WRITES"].split("|")) == DEVICE_WRITES
    assert tuple(one.replace(r"\.", "/") for one in found["READS"].split("|")) == DEVICE_READS
    script = (FOLDER / "rabbitmq-users.sh").read_text()
    assert 'user "server:$fleet"' in script
    assert server_name("x") == "server:x"
    assert r"$own\.hello" in script


@pytest.mark.parametrize("name", ["pi.kitchen", "pi kitchen", "", "pi/x", "pi$(id)", "pi|hall"])
def test_names_that_would_be_a_pattern_are_refused_before_anything_is_done(name: str, tmp_path: Path) -> None:
    called = tmp_path / "called"
    fake = tmp_path / "rabbitmqctl"
    fake.write_text(f"#!/bin/sh\ntouch {called}\n")
    fake.chmod(0o755)
    for words in ([name, "pi"], ["default", name], ["--revoke", "default", name]):
        command = ["sh", str(FOLDER / "rabbitmq-users.sh"), *words]
        env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=60)
        assert (done.returncode, called.exists()) == (2, False), done.stderr
        assert "use names of letters" in done.stderr


def test_rabbitmq_asks_for_certificates_and_takes_their_names() -> None:
    settings = dict(re.findall(r"^([\w.]+)\s*=\s*(\S+)$", text_of("rabbitmq.conf"), re.MULTILINE))
    assert settings["ssl_options.versions.1"] == "tlsv1.3"
    assert "ssl_options.versions.2" not in settings
    assert settings["ssl_options.verify"] == "verify_peer"
    assert settings["ssl_options.fail_if_no_peer_cert"] == "true"
    assert (settings["mqtt.ssl_cert_login"], settings["ssl_cert_login_from"]) == ("true", "common_name")
    assert (settings["mqtt.listeners.tcp"], settings["mqtt.allow_anonymous"]) == ("none", "false")
    assert settings["mqtt.vhost"] == variables()["VHOST"]


class RabbitMq:
    """A RabbitMQ of its own, with the files of docs/brokers."""

    def __init__(self, folder: Path, certificates: Path) -> None:
        self.port, epmd = free_port(), free_port()
        text = (FOLDER / "rabbitmq.conf").read_text()
        text = text.replace("/etc/rabbitmq/covey", str(certificates)).replace(
            "ssl.default = 8883", f"ssl.default = {self.port}"
        )
        folder.mkdir()
        (folder / "rabbitmq.conf").write_text(text)
        (folder / "plugins").write_text("[rabbitmq_mqtt].")
        self.log = folder / "log"
        self._env = os.environ | {
            "PATH": f"{RABBITMQ}:{os.environ['PATH']}",
            "HOME": str(folder),
            "ERL_EPMD_PORT": str(epmd),
            "RABBITMQ_NODENAME": f"covey{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder),
            "RABBITMQ_LOGS": str(self.log),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "COVEY_MQTT_PORT": str(self.port),
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen([str(RABBITMQ / "rabbitmq-server")], env=self._env, stdout=subprocess.DEVNULL)

        def is_listening() -> bool:
            assert self._process is not None
            assert self._process.poll() is None, self.log.read_text()[-3000:]
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return True
            return False

        wait_for(is_listening, "RabbitMQ", 300.0)

    def users(self, *words: str) -> None:
        subprocess.run(["sh", str(FOLDER / "rabbitmq-users.sh"), *words], env=self._env, check=True, timeout=300)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
        subprocess.run(["epmd", "-kill"], env=self._env, check=False, capture_output=True, timeout=60)


@pytest.fixture
def rabbitmq(tmp_path: Path, tiny_bundle: Bundle) -> Iterator[tuple[TrustedFleet, RabbitMq]]:
    fleet = TrustedFleet(tmp_path / "fleet", tiny_bundle)
    fleet.covey("fleet", "mosquitto", "--out", str(tmp_path / "certificates"), "--host", "127.0.0.1")
    broker = RabbitMq(tmp_path / "rabbitmq", tmp_path / "certificates")
    try:
        broker.start()
        yield fleet, broker
    finally:
        fleet.stop()
        broker.stop()


def publishes(port: int, tls: TlsFiles, topic: str, user: str | None = None) -> bool:
    """Whether the broker takes a message of the device a; one that it does not take ends the connection."""
    address = BrokerAddress("127.0.0.1", port, tls=True, username=user, password="" if user else None)
    client: Any = make_client(address, "covey-default-a-check", tls, keep_session=False)
    client.connect("127.0.0.1", port)
    ended = False
    try:
        number: int | None = None
        taken: set[int] = set()
        client.on_publish = lambda _c, _d, mid, _r, _p: taken.add(mid)
        client.on_connect = lambda _c, _d, _f, _reason, _p: taken.add(0)
        while not ended and (number is None or number not in taken):
            ended = client.loop(0.1) != 0
            if number is None and 0 in taken:
                number = client.publish(topic, b"", qos=1).mid
        return not ended
    finally:
        client.disconnect()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not RABBITMQ.is_dir(), reason="RabbitMQ is not installed: apt-get install rabbitmq-server")
def test_a_job_through_rabbitmq_and_who_may_do_what(rabbitmq: tuple[TrustedFleet, RabbitMq]) -> None:
    fleet, broker = rabbitmq
    port = broker.port
    broker.users("default", "a", "b")
    several = ("--report-connections", "2")  # which RabbitMQ has no groups for
    server = fleet.stay("--broker", f"mqtts://127.0.0.1:{port}", "--join-port", "0", *several)
    fleet.said = server.wait_event("serving")
    assert server.stderr.read_text().count("does not hand messages to groups") == 1
    for seed, name in enumerate("ab"):
        fleet.join(name, seed)
        fleet.start(name)
    wait_for(lambda: list(fleet.states().values()).count("online") == 2, "two devices")
    fleet.submit("job", rounds=2, min_devices=2)
    assert fleet.covey("job", "watch", "job")["state"] == "finished"

    own, address = fleet.tls_files("a"), BrokerAddress("127.0.0.1", port, tls=True, username=None, password=None)

    def reads(tls: TlsFiles, topic: str) -> list[str]:
        found = check_access(address, "covey-default-a-check", tls, reads=[f"{OWN}/{topic}"], writes=[])
        return [cause.kind for cause in found.causes]

    for kind in (*DEVICE_READS, "hello"):
        assert reads(own, kind if kind == "hello" else f"a/{kind}") == []
    for topic in ("b/plan", "a/report", "+/report", "servers", "#"):
        assert reads(own, topic) == ["acl"]
    assert reads(TlsFiles(own.ca_file), "hello") == ["client-certificate-missing"]
    for kind in DEVICE_WRITES:
        assert publishes(port, own, f"{OWN}/a/{kind}")
    for topic in ("b/report", "a/plan", "hello", "servers"):
        assert not publishes(port, own, f"{OWN}/{topic}")
    for user in ("b", "server:default", "guest"):  # the name is the certificate's, whatever is said
        assert not publishes(port, own, f"{OWN}/b/report", user)

    fleet.covey("device", "revoke", "a")
    broker.users("--revoke", "default", "a")
    assert reads(own, "hello") == ["not-authorised"]
    wait_for(lambda: "no member of its fleet" in (fleet.root / "out" / "a.0.err").read_text(), "a to be told", 120.0)
