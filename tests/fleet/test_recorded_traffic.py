"""The limits of the protocol, held on every byte that real fleets send and get: a plain one, and one that signs."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from fleets import Fleet, has_mosquitto, mosquitto, wait_for, write_edge, write_job
from mqtt_recording import Packet, read_packets, recorded
from signing import key_of

from edge_runtime.protocol.messages import MAX_PAYLOAD_BYTES
from edge_runtime.protocol.signed import SERVER

if TYPE_CHECKING:
    from pathlib import Path

    from mqtt_recording import Recorder

    from edge_runtime.bundle.folder import Bundle

pytestmark = [
    pytest.mark.slow,
    pytest.mark.mosquitto,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not has_mosquitto(), reason="install the Debian package mosquitto"),
]
NAMES = ("a", "b")
MOST_SLASHES = 7
LONGEST_TOPIC_BYTES = 256
STLD: dict[str, Any] = {"steps": 4, "batch_size": 4, "personal_share": 0.34, "device_levels": {"b": 2, "a": 0}}
PROBE = "-check"
"""How the client ids end that look, when a program starts, for access lists: with MQTT 5, which alone has an answer."""


def write_keys(folder: Path, name: str) -> tuple[Path, Path]:
    """Write a member's key pair; return the files of the private and the public key."""
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    folder.mkdir(exist_ok=True)
    key = key_of(name)
    private, public = folder / f"{name}.key", folder / f"{name}.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    private.chmod(0o600)
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


def work(fleet: Fleet, *, is_signed: bool) -> None:
    """Let a fleet do what fleets do: a forward-only job, a hybrid one, a profile, a log that is followed."""
    keys: tuple[str, ...] = ()
    fields: dict[str, dict[str, Any]] = {name: {} for name in NAMES}
    if is_signed:
        private, public = write_keys(fleet.root / "server-keys", SERVER)
        keys = ("--sign-key", str(private), "--device-keys", str(fleet.root / "device-keys"))
        for name in NAMES:
            own = write_keys(fleet.root / "device-keys", name)[0]
            fields[name] = {"signing": {"key_file": str(own), "server_key_file": str(public)}}
    server = fleet.stay("--broker", f"mqtt://127.0.0.1:{fleet.port}", *keys)
    server.wait_event("serving")
    config = write_edge(fleet.root / "a", "a", fleet.port, 0, **fields["a"])
    measure = ["profile", "--config", str(config), "--bundle", str(fleet.bundle.path), "--seconds", "0.01"]
    measure += ["--shapes", "1x8", "--sustain", "0.1s", "--board", "my-board"]
    subprocess.run([sys.executable, "-m", "edge_runtime.cli", *measure], check=True, capture_output=True, timeout=300)
    for seed, name in enumerate(NAMES):
        fleet.device(name, seed, stays=True, **fields[name])
    states = lambda: [one["state"] for one in fleet.covey("device", "list")["devices"]]  # noqa: E731 one line
    wait_for(lambda: states().count("online") == len(NAMES), "all devices")
    command = [
        sys.executable,
        "-m",
        "server.cli",
        "device",
        "logs",
        "b",
        "--follow",
        "--state-dir",
        str(fleet.state_dir),
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as follower:
        for name, more in (("forward", {}), ("hybrid", {"stld": STLD})):
            folder = fleet.root / name
            folder.mkdir()
            job = write_job(folder, name=name, rounds=2, steps=4, min_devices=2, min_reports=2, **more)
            fleet.covey("job", "submit", str(job), "--bundle", str(fleet.bundle.path))
            assert fleet.covey("job", "watch", name)["state"] == "finished"
        follower.kill()


def all_packets(recorder: Recorder) -> tuple[list[list[Packet]], list[list[Packet]]]:
    """Return the packets of each connection in both directions, probes left out; what is no MQTT 3.1.1 fails."""
    up, down = [], []
    for connection in recorder.connections:
        if not connection.up:
            continue  # somebody looked whether the port is open
        first = read_packets(bytes(connection.up[: 2 + connection.up[1]]))
        if first and first[0].level == 5 and (first[0].client_id or "").endswith(PROBE):
            continue
        up.append(read_packets(bytes(connection.up)))
        down.append(read_packets(bytes(connection.down)))
    return up, down


@pytest.mark.parametrize("is_signed", [False, True], ids=["plain", "signed"])
def test_the_limits_hold_on_everything_that_is_sent(tmp_path: Path, graphs: Bundle, is_signed: bool) -> None:
    with mosquitto(tmp_path / "mosquitto") as broker, recorded(broker) as recorder:
        fleet = Fleet(tmp_path, graphs, recorder.port, external=True)
        try:
            work(fleet, is_signed=is_signed)
        finally:
            fleet.stop()
        up, down = all_packets(recorder)
    packets = [packet for packets in up + down for packet in packets]
    assert all(packets[0].kind == "CONNECT" and packets[0].level == 4 for packets in up)
    assert max(packet.qos for packet in packets) == 1
    assert not {"PUBREC", "PUBREL", "PUBCOMP"} & {packet.kind for packet in packets}
    for packet in packets:
        assert len(packet.payload) < MAX_PAYLOAD_BYTES
        for topic in packet.topics:
            assert topic.count("/") <= MOST_SLASHES
            assert len(topic.encode()) <= LONGEST_TOPIC_BYTES
    kinds = {topic.split("/", 4)[-1] for packet in packets if packet.kind == "PUBLISH" for topic in packet.topics}
    wanted = {"birth", "state", "profile", "plan", "report", "report/ack", "log", "log/get"}
    assert wanted <= kinds  # else this test has not seen what it is about
