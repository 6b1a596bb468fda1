"""Signatures in real processes: a server and devices with key files, a device without, and a stranger on the broker."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from fleets import Fleet, free_port, wait_for, write_job
from signing import key_of

from edge_runtime.network.address import parse_broker
from edge_runtime.network.mqtt import MqttTransport
from edge_runtime.protocol.messages import encode_message
from edge_runtime.protocol.presence import DeviceState
from edge_runtime.protocol.reports import PlanRefused
from edge_runtime.protocol.signed import SERVER
from edge_runtime.protocol.topics import topic_for

if TYPE_CHECKING:
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle


def write_keys(folder: Path, name: str) -> tuple[Path, Path]:
    """Write a member's key pair; return the files of the private and the public key."""
    folder.mkdir(exist_ok=True)
    key = key_of(name)
    private, public = folder / f"{name}.key", folder / f"{name}.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    private.chmod(0o600)
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.mark.slow
def test_a_signed_job_in_processes(tmp_path: Path, tiny_bundle: Bundle) -> None:
    port = free_port()
    fleet = Fleet(tmp_path, tiny_bundle, port, external=False)
    server_key, server_public = write_keys(tmp_path / "server-keys", SERVER)
    device_keys = tmp_path / "device-keys"
    try:
        keys = ("--sign-key", str(server_key), "--device-keys", str(device_keys))
        private = {name: write_keys(device_keys, name)[0] for name in ("pi", "zero")}
        job = write_job(tmp_path, min_devices=2, min_reports=2, rounds=2)
        server = fleet.serve(job, "--mqtt-port", str(port), *keys)
        fleet.device("plain", 3, stays=True)
        wait_for(lambda: "in the name of plain (unsigned)" in server.stderr.read_text(), "the line of the plain device")
        stranger = MqttTransport(parse_broker(f"mqtt://127.0.0.1:{port}"), "stranger")
        for name in private:
            lost = DeviceState(state="lost", boot_id="x")
            refused = PlanRefused(job="job", round=0, attempt=0, device=name, code=3, message="no")
            stranger.publish(topic_for("default", name, "state"), encode_message(lost), retain=True)
            stranger.publish(topic_for("default", name, "report"), encode_message(refused))
        devices = [
            fleet.device(name, seed, signing={"key_file": str(key), "server_key_file": str(server_public)})
            for seed, (name, key) in enumerate(private.items(), 1)
        ]
        result = server.result()
        hashes = {device.result()["adapter_sha256"] for device in devices}
        stranger.close()
    finally:
        fleet.stop()
    assert hashes == {result["adapter_sha256"]}
    log = server.stderr.read_text()
    assert "in the name of pi (unsigned)" in log
    assert "plain" not in {event.get("device") for event in server.events()}
