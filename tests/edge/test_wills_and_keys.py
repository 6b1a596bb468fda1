"""Last wills of signed members, keys that come and go, and the files that keys are read from."""

from __future__ import annotations

import argparse
import datetime as dt
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID
from signing import FLEET, fleet_of, key_of, reason_of

from edge_runtime.agent.config import EdgeConfig, read_edge_config
from edge_runtime.commands import doctor_checks
from edge_runtime.data.examples import DataConfig
from edge_runtime.errors import ConfigError
from edge_runtime.network.in_process import Hub
from edge_runtime.network.transport import Connected, Message
from edge_runtime.protocol.signed import SERVER, decode_envelope, encode_envelope
from edge_runtime.protocol.topics import hello_topic, topic_for
from edge_runtime.signing.key_files import DeviceKeys, ServerKeys
from edge_runtime.signing.keys import KeyFolder, key_id, read_private_key, read_public_keys
from edge_runtime.signing.members import device_member, server_member
from edge_runtime.signing.signer import Signer
from edge_runtime.signing.verifier import Reason, Verifier
from server.commands import server_checks
from server.commands.serve import add_addresses, options_of
from server.commands.shared_options import add_state_dir
from server.commands.systemd_unit import unit_text
from server.serving.options import ServeOptions

TOPIC = topic_for(FLEET, "pi", "report")
STATE = topic_for(FLEET, "pi", "state")


# -- wills ----------------------------------------------------------------------------------------------------------


def test_a_last_will_counts_once_after_each_state_of_its_session() -> None:
    fleet = fleet_of("pi")
    signer, verifier = fleet.signer("pi", "boot-1"), fleet.verifier(SERVER, "server")
    will = signer.seal(STATE, b"lost", role="will")
    assert reason_of(verifier, STATE, will) is Reason.STALE  # retained, and nothing was heard of the device
    for _ in range(2):  # the will of one process serves each of its connections
        assert reason_of(verifier, STATE, signer.seal(STATE, b"online", "server")) is None
        assert reason_of(verifier, STATE, will) is None
        assert reason_of(verifier, STATE, will) is Reason.DUPLICATE
    again = fleet.signer("pi", "boot-2")
    assert reason_of(verifier, STATE, again.seal(STATE, b"online", "server")) is None
    assert reason_of(verifier, STATE, will) is Reason.REPLAYED
    assert reason_of(verifier, STATE, again.seal(STATE, b"lost", role="will")) is Reason.REPLAYED  # sealed too late


def test_a_will_is_nothing_but_a_last_state() -> None:
    fleet = fleet_of("pi")
    signer, verifier = fleet.signer("pi", "boot"), fleet.verifier(SERVER, "server")
    will = signer.seal(STATE, b"lost", role="will")
    report = signer.seal(TOPIC, b"report", role="will")
    assert reason_of(verifier, STATE, signer.seal(STATE, b"online", "server")) is None
    as_message = encode_envelope(msgspec.structs.replace(decode_envelope(will), role="message"))
    assert reason_of(verifier, STATE, as_message) is Reason.ALTERED
    assert reason_of(verifier, TOPIC, report) is Reason.MISPLACED


# -- keys -----------------------------------------------------------------------------------------------------------


def signed_with(generation: int, sequence: int, session: str = "boot") -> bytes:
    return Signer("pi", FLEET, session, key_of("pi", generation), lambda: sequence).seal(TOPIC, b"body", "server")


def test_keys_overlap_and_numbers_go_on_while_they_do() -> None:
    fleet = fleet_of()
    fleet.book.add("pi", key_of("pi", 0).public_key())
    verifier = fleet.verifier(SERVER, "server")
    assert reason_of(verifier, TOPIC, signed_with(0, 5)) is None
    assert reason_of(verifier, TOPIC, signed_with(1, 6)) is Reason.FOREIGN
    fleet.book.add("pi", key_of("pi", 1).public_key())
    assert reason_of(verifier, TOPIC, signed_with(1, 6)) is None
    assert (
        reason_of(verifier, TOPIC, signed_with(0, 5)) is Reason.REPLAYED
    )  # no older message comes in by the other key
    assert reason_of(verifier, TOPIC, signed_with(0, 7)) is None


def test_a_device_that_joined_anew_begins_its_numbers_anew_and_a_removed_key_is_refused() -> None:
    fleet = fleet_of()
    fleet.book.replace("pi", key_of("pi", 0).public_key())
    verifier = fleet.verifier(SERVER, "server")
    assert reason_of(verifier, TOPIC, signed_with(0, 5000, "old")) is None
    fleet.book.replace("pi", key_of("pi", 1).public_key())
    assert reason_of(verifier, TOPIC, signed_with(0, 5001, "old")) is Reason.FOREIGN
    assert reason_of(verifier, TOPIC, signed_with(1, 1, "new")) is None
    assert verifier.session_of("pi") == "new"
    fleet.book.replace("pi")
    assert reason_of(verifier, TOPIC, signed_with(1, 2, "new")) is Reason.FOREIGN


# -- files of keys --------------------------------------------------------------------------------------------------


def public_pem(name: str, generation: int = 0) -> bytes:
    key = key_of(name, generation).public_key()
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def certificate_pem(key: Any, signed_by: Any, *, is_authority: bool) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pi")])
    now = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + dt.timedelta(days=1))
    made = made.add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
    return made.sign(signed_by, hashes.SHA256()).public_bytes(Encoding.PEM)


def private_pem(key: Any, path: Path, mode: int = 0o600) -> Path:
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    path.chmod(mode)
    return path


def test_a_folder_of_keys_counts_as_it_is_now(tmp_path: Path) -> None:
    verifier = Verifier(SERVER, FLEET, "server", KeyFolder(tmp_path))
    assert reason_of(verifier, TOPIC, signed_with(0, 1)) is Reason.FOREIGN
    (tmp_path / "pi.pem").write_bytes(public_pem("pi", 0))
    assert reason_of(verifier, TOPIC, signed_with(0, 2)) is None
    (tmp_path / "pi.pem").write_bytes(public_pem("pi", 0) + public_pem("pi", 1))
    assert reason_of(verifier, TOPIC, signed_with(1, 3)) is None
    assert reason_of(verifier, TOPIC, signed_with(0, 2)) is Reason.REPLAYED
    (tmp_path / "pi.pem").unlink()
    assert reason_of(verifier, TOPIC, signed_with(1, 4)) is Reason.FOREIGN


def test_a_certificate_stands_for_its_key_and_an_authority_for_none(tmp_path: Path) -> None:
    key, authority = key_of("pi"), key_of("authority")
    leaf = certificate_pem(key, authority, is_authority=False)
    chain = leaf + certificate_pem(authority, authority, is_authority=True)
    path = tmp_path / "chain.pem"
    path.write_bytes(b"a comment\n" + chain)
    assert [key_id(found) for found in read_public_keys(path)] == [key_id(key.public_key())]
    path.write_bytes(certificate_pem(authority, authority, is_authority=True))
    with pytest.raises(ConfigError, match="no member's certificate"):
        read_public_keys(path)


def test_a_damaged_file_of_a_device_keeps_it_out_and_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "pi.pem").write_bytes(public_pem("pi")[:-40])
    verifier = Verifier(SERVER, FLEET, "server", KeyFolder(tmp_path))
    for sequence in (1, 2, 3):
        assert reason_of(verifier, TOPIC, signed_with(0, sequence)) is Reason.FOREIGN
    assert caplog.text.count("pi is not believed") == 1


@pytest.mark.parametrize(
    "content", [b"", b"\0\xff" * 50, b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"]
)
def test_what_is_no_key_is_a_clear_error(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(content)
    path.chmod(0o600)
    for read in (read_public_keys, read_private_key):
        with pytest.raises(ConfigError) as error:
            read(path)
        assert str(path) in error.value.what
        assert error.value.hint
        with pytest.raises(ConfigError, match="No such file"):
            read(tmp_path / "missing.pem")


def test_keys_of_another_kind_and_keys_that_others_can_read_are_refused(tmp_path: Path) -> None:
    other = ec.generate_private_key(ec.SECP384R1())
    with pytest.raises(ConfigError, match="no P-256 key"):
        read_private_key(private_pem(other, tmp_path / "other.pem"))
    (tmp_path / "public.pem").write_bytes(
        other.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    with pytest.raises(ConfigError, match="none of P-256"):
        read_public_keys(tmp_path / "public.pem")
    for mode in (0o640, 0o604, 0o602):
        with pytest.raises(ConfigError, match="others than its owner"):
            read_private_key(private_pem(key_of("pi"), tmp_path / "open.pem", mode))
    assert key_id(read_private_key(private_pem(key_of("pi"), tmp_path / "closed.pem")).public_key()) == key_id(
        key_of("pi").public_key()
    )


def test_members_are_made_from_files_and_understand_each_other(tmp_path: Path) -> None:
    (tmp_path / "devices").mkdir()
    (tmp_path / "devices" / "pi.pem").write_bytes(public_pem("pi"))
    (tmp_path / "server.pem").write_bytes(public_pem(SERVER))
    server_keys = ServerKeys(private_pem(key_of(SERVER), tmp_path / "server.key"), tmp_path / "devices")
    device_keys = DeviceKeys(str(private_pem(key_of("pi"), tmp_path / "pi.key")), str(tmp_path / "server.pem"))
    hello = hello_topic(FLEET)
    sealed = []
    for boot in ("boot-1", "boot-2"):  # also after restarts of both, the numbers of both go on
        hub = Hub()
        server = server_member(server_keys, FLEET, tmp_path / "server").around(hub.join())
        device = device_member(device_keys, FLEET, "pi", boot, tmp_path / "pi").around(hub.join())
        device.subscribe(hello)
        server.subscribe(TOPIC)
        server.publish(hello, b"hello", retain=True)
        assert isinstance(device.receive(0), Connected)
        got = device.receive(0)
        assert got == Message(hello, b"hello"), (boot, device.refused)
        device.publish(TOPIC, b"report")
        assert isinstance(server.receive(0), Connected)
        assert server.receive(0) == Message(TOPIC, b"report")
        sealed.append(device.seal(TOPIC, b""))
    numbers = [decode_envelope(payload).sequence for payload in sealed]
    assert numbers[1] > numbers[0]
    with pytest.raises(ConfigError, match="no folder"):
        server_member(ServerKeys(server_keys.key_file, tmp_path / "nowhere"), FLEET, tmp_path / "server")


def test_doctors_read_the_keys(tmp_path: Path) -> None:
    (tmp_path / "devices").mkdir()
    (tmp_path / "server.pem").write_bytes(public_pem(SERVER))
    private_pem(key_of("pi"), tmp_path / "pi.key")
    private_pem(key_of(SERVER), tmp_path / "server.key")
    config = EdgeConfig(
        name="pi",
        broker="mqtt://127.0.0.1:1",
        data=DataConfig(str(tmp_path / "none")),
        state_dir=str(tmp_path),
        signing=DeviceKeys(str(tmp_path / "pi.key"), str(tmp_path / "server.pem")),
    )
    options = ServeOptions(
        state_dir=tmp_path / "state", signing=ServerKeys(tmp_path / "server.key", tmp_path / "devices")
    )

    def statuses() -> tuple[str, str]:
        of_device = {f.check: f.status for f in doctor_checks.examine(config, lambda: 0.0, tmp_path)}
        of_server = {f.check: f.status for f in server_checks.examine(options)}
        return of_device["signing"], of_server["signing"]

    assert statuses() == ("ok", "warning")  # the server knows no device yet
    (tmp_path / "devices" / "pi.pem").write_bytes(public_pem("pi"))
    assert statuses() == ("ok", "ok")
    (tmp_path / "devices" / "zero.pem").write_bytes(b"nothing")
    (tmp_path / "pi.key").chmod(0o644)
    assert statuses() == ("problem", "problem")


@pytest.mark.parametrize("missing", ["--sign-key", "--device-keys"])
def test_a_server_needs_both_or_neither(missing: str, tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    add_addresses(parser)
    add_state_dir(parser)
    given = {"--sign-key": "server.key", "--device-keys": "devices"}
    flags = [word for flag, value in given.items() if flag != missing for word in (flag, value)]
    with pytest.raises(ConfigError, match="belong together"):
        options_of(parser.parse_args(flags))
    both = options_of(parser.parse_args([word for pair in given.items() for word in pair]))
    assert both.signing == ServerKeys(Path("server.key"), Path("devices"))
    assert f"--sign-key {Path('server.key').resolve()} --device-keys" in unit_text(both, "covey")
    assert options_of(parser.parse_args([])).signing is None


def test_edge_toml_names_the_keys_relative_to_itself(tmp_path: Path) -> None:
    path = tmp_path / "edge.toml"
    head = 'name = "pi"\nbroker = "mqtt://b"\n[data]\npath = "d"\n'
    path.write_text(f'{head}[signing]\nkey_file = "pi.key"\nserver_key_file = "server.pem"\n')
    assert read_edge_config(path).signing == DeviceKeys(str(tmp_path / "pi.key"), str(tmp_path / "server.pem"))
    path.write_text(head)
    assert read_edge_config(path).signing is None
    path.write_text(f'{head}[signing]\nkey_file = "pi.key"\n')
    with pytest.raises(ConfigError, match="server_key_file"):
        read_edge_config(path)
