"""The fleet's authority: files that only their owner reads, and certificates that the strictest checks accept."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import shutil
import socket
import ssl
import stat
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from edge_runtime.errors import ConfigError, CoveyError, EnrolmentError, StorageError
from edge_runtime.trust.exchange import trusting
from edge_runtime.trust.keys import certificate_pem, key_pem, make_request, new_key, read_request
from edge_runtime.trust.validity import ClockError, check_valid_now, is_renewal_due
from server.cli import main
from server.storage.audit_queries import audit_of
from server.storage.ledger import Ledger
from server.storage.ledger_address import LEDGER_FILE
from server.storage.trust_queries import find_token
from server.trust.authority import Authority
from server.trust.folder import (
    AUTHORITY_CERT,
    AUTHORITY_KEY,
    SERVER_CERT,
    SERVER_KEY,
    SIGNING_CERT,
    SIGNING_KEY,
    Trust,
    init_trust,
    open_trust,
    with_server_certificate,
)
from server.trust.rate_limit import Rate, RateLimit
from server.trust.tls import server_context
from server.trust.tokens import duration_s, numbered_names

NOW = dt.datetime.now(dt.timezone.utc)


@pytest.fixture
def trust(tmp_path: Path) -> Trust:
    return init_trust(tmp_path / "state", "default", ["127.0.0.1", "localhost"], 8443, NOW)


def device_files(
    trust: Trust, folder: Path, name: str = "pi-a", authority: Authority | None = None
) -> tuple[Path, Path]:
    folder.mkdir(exist_ok=True)
    key = new_key()
    certificate = (authority or trust.authority).device(name, key.public_key(), NOW)
    (folder / f"{name}.pem").write_text(certificate_pem(certificate))
    (folder / f"{name}.key").write_bytes(key_pem(key))
    return folder / f"{name}.pem", folder / f"{name}.key"


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, host: str = "127.0.0.1") -> bytes | None:
    """Connect over a real socket; return the client's certificate as the server has seen it, or raise its error."""
    ours, theirs = socket.socketpair()
    seen: list[object] = []

    def serve() -> None:
        try:
            with server.wrap_socket(ours, server_side=True) as connection:
                seen.append(connection.getpeercert(binary_form=True))
                connection.sendall(b"x")
        except (ssl.SSLError, OSError) as error:
            seen.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(theirs, server_hostname=host) as connection:
            connection.recv(1)
    finally:
        thread.join(10)
    found = seen[0]
    if isinstance(found, BaseException):
        raise found
    return found  # type: ignore[return-value]


# -- certificates ------------------------------------------------------------------------------------------------------


def test_every_certificate_passes_the_strict_checks(trust: Trust, tmp_path: Path) -> None:
    pem = certificate_pem(trust.authority.certificate)
    cert, key = device_files(trust, tmp_path / "pi")
    server = server_context(trust, needs_certificate=True)
    client = trusting(pem, (cert, key))
    for context in (server, client):
        assert context.verify_flags & ssl.VERIFY_X509_STRICT
    seen = handshake(server, client)
    assert seen is not None
    assert x509.load_der_x509_certificate(seen) == x509.load_pem_x509_certificate(cert.read_bytes())
    assert handshake(server, client, "localhost") == seen
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(server, client, "elsewhere.example")


def test_a_device_without_a_certificate_or_with_a_foreign_one_is_turned_away(trust: Trust, tmp_path: Path) -> None:
    pem = certificate_pem(trust.authority.certificate)
    other = init_trust(tmp_path / "other", "default", ["127.0.0.1"], 8443, NOW)
    strict = server_context(trust, needs_certificate=True)
    with pytest.raises((ssl.SSLError, OSError)):
        handshake(strict, trusting(pem))
    foreign = device_files(trust, tmp_path / "pi", authority=other.authority)
    for context in (strict, server_context(trust, needs_certificate=False)):
        with pytest.raises((ssl.SSLError, OSError)):
            handshake(context, trusting(pem, foreign))
    assert handshake(server_context(trust, needs_certificate=False), trusting(pem)) is None


def test_neither_a_device_nor_the_signing_key_can_be_a_server(trust: Trust, tmp_path: Path) -> None:
    pem = certificate_pem(trust.authority.certificate)
    pairs = [
        device_files(trust, tmp_path / "pi", "localhost"),
        (trust.folder / SIGNING_CERT, trust.folder / SIGNING_KEY),
    ]
    for cert, key in pairs:
        pretender = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        pretender.load_cert_chain(cert, key)
        with pytest.raises(ssl.SSLCertVerificationError):
            handshake(pretender, trusting(pem), "localhost")


def test_certificates_have_names_identifiers_and_usages(trust: Trust) -> None:
    key = new_key().public_key()
    device = trust.authority.device("pi-a", key, NOW)
    for certificate, usages in (
        (device, {ExtendedKeyUsageOID.CLIENT_AUTH}),
        (trust.server, {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}),
        (trust.signing, {ExtendedKeyUsageOID.CODE_SIGNING}),
    ):
        extensions = certificate.extensions
        assert set(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == usages
        usage = extensions.get_extension_for_class(x509.KeyUsage)
        assert (usage.critical, usage.value.digital_signature, usage.value.key_cert_sign) == (True, True, False)
        own = extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        assert own == x509.SubjectKeyIdentifier.from_public_key(certificate.public_key())  # type: ignore[arg-type]
        theirs = extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
        authority = trust.authority.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        assert theirs == authority.digest
        assert list(extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    names = device.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["urn:covey:default:pi-a"]
    assert trust.authority.sha256 == hashlib.sha256(trust.authority.certificate.public_bytes(Encoding.DER)).digest()


def test_no_certificate_outlives_the_authority(trust: Trust) -> None:
    end = trust.authority.certificate.not_valid_after_utc
    late = end - dt.timedelta(days=3)
    key = new_key().public_key()
    assert trust.authority.device("pi", key, late).not_valid_after_utc == end
    with pytest.raises(ConfigError, match="has expired"):
        trust.authority.device("pi", key, end + dt.timedelta(seconds=1))


def test_a_wrong_clock_is_named(trust: Trust) -> None:
    certificate = trust.authority.device("pi", new_key().public_key(), NOW)
    check_valid_now(certificate, "it", NOW.timestamp(), "join")
    for years in (-10, 10):
        with pytest.raises(ClockError, match="this machine's clock says") as refused:
            check_valid_now(certificate, "it", NOW.timestamp() + years * 365.25 * 86400, "join")
        assert "timedatectl" in refused.value.hint
    with pytest.raises(ClockError, match="1970-01-01 00:00 UTC"):
        check_valid_now(certificate, "it", 0.0, "join")
    with pytest.raises(ClockError):
        check_valid_now(certificate, "it", 1e18, "join")
    assert not is_renewal_due(certificate, NOW.timestamp() + 59 * 86400)
    assert is_renewal_due(certificate, NOW.timestamp() + 61 * 86400)


@pytest.mark.parametrize(
    "csr", ["", "-----BEGIN CERTIFICATE REQUEST-----\n!\n-----END CERTIFICATE REQUEST-----\n", "\x00" * 100]
)
def test_what_is_no_request_is_refused(csr: str) -> None:
    with pytest.raises(CoveyError, match="cannot be read"):
        read_request(csr)


def test_a_request_with_another_key_or_signature_is_refused() -> None:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "pi")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    for key in (rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP384R1())):
        pem = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()
        with pytest.raises(CoveyError, match="no P-256 key"):
            read_request(pem)
    good = x509.load_pem_x509_csr(make_request(new_key(), "pi").encode())
    data = bytearray(good.public_bytes(Encoding.DER))
    data[-1] ^= 1
    altered = x509.load_der_x509_csr(bytes(data)).public_bytes(Encoding.PEM).decode()
    with pytest.raises(CoveyError, match="not signed with its own key"):
        read_request(altered)


# -- the folder --------------------------------------------------------------------------------------------------------


def test_only_the_owner_can_read_the_files(trust: Trust) -> None:
    assert stat.S_IMODE(trust.folder.stat().st_mode) == 0o700
    files = list(trust.folder.iterdir())
    assert {AUTHORITY_KEY, SERVER_KEY, SIGNING_KEY, AUTHORITY_CERT} <= {file.name for file in files}
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


@pytest.mark.parametrize("name", [AUTHORITY_KEY, SERVER_KEY, SIGNING_KEY])
def test_a_key_that_others_can_read_is_refused(trust: Trust, name: str) -> None:
    (trust.folder / name).chmod(0o640)
    with pytest.raises(StorageError, match="other users can read") as refused:
        open_trust(trust.folder.parent)
    assert "chmod 600" in refused.value.hint


@pytest.mark.parametrize(
    "name", [AUTHORITY_KEY, SERVER_KEY, SIGNING_KEY, AUTHORITY_CERT, SERVER_CERT, SIGNING_CERT, "fleet.json"]
)
@pytest.mark.parametrize("damage", ["missing", "empty", "flipped", "foreign"])
def test_a_file_that_is_missing_damaged_or_of_another_fleet_is_named(
    trust: Trust, tmp_path: Path, name: str, damage: str
) -> None:
    path = trust.folder / name
    if damage == "foreign" and name == "fleet.json":
        return
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "foreign":
        other = init_trust(tmp_path / "other", "default", ["127.0.0.1"], 8443, NOW)
        shutil.copy(other.folder / name, path)
    else:
        middle = len(data) // 2
        path.write_bytes(
            b"" if damage == "empty" else data[:middle] + bytes([data[middle] ^ 0x80]) + data[middle + 1 :]
        )
    with pytest.raises(CoveyError) as refused:
        open_trust(trust.folder.parent)
    assert str(trust.folder) in refused.value.what
    assert refused.value.hint
    assert "BEGIN" not in str(refused.value)


def test_init_overwrites_nothing_and_leaves_nothing_half_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["fleet", "init", "--state-dir", str(tmp_path), "--host", "covey.example"]
    (tmp_path / "trust.partial").mkdir()
    (tmp_path / "trust.partial" / "ca-key.pem").write_text("of an attempt that was cut off")
    assert main(words) == 0
    out = capsys.readouterr().out
    for name in ("ca-key.pem", "ca.pem", "signing-key.pem"):
        assert str(tmp_path / "trust" / name) in out
    assert "PRIVATE KEY" not in out
    assert not (tmp_path / "trust.partial").exists()
    before = {path.name: path.read_bytes() for path in (tmp_path / "trust").iterdir()}
    assert main(words) == ConfigError.exit_code
    assert "is there already" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (tmp_path / "trust").iterdir()} == before
    for bad in (["--host", "a b"], ["--host", "x", "--fleet", "a/b"], ["--host", "x", "--join-port", "0"]):
        other = tmp_path / "other"
        assert main(["fleet", "init", "--state-dir", str(other), *bad]) == ConfigError.exit_code
        assert not (other / "trust").exists()
        assert not (other / "trust.partial").exists()


def test_the_servers_certificate_is_made_anew_in_time_and_for_more_hosts(trust: Trust) -> None:
    assert with_server_certificate(trust, NOW).server == trust.server
    later = with_server_certificate(trust, NOW + dt.timedelta(days=300))
    assert later.server.not_valid_after_utc > trust.server.not_valid_after_utc
    assert later.hosts == trust.hosts
    assert with_server_certificate(later, NOW, ["192.0.2.7", "localhost"]).hosts == [
        "localhost",
        "127.0.0.1",
        "192.0.2.7",
    ]


# -- covey fleet token -------------------------------------------------------------------------------------------------


def test_tokens_are_made_without_a_server_and_only_their_hashes_are_kept(
    trust: Trust, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = ["--state-dir", str(trust.folder.parent)]
    assert main(["fleet", "token", "pi-a", "pi-b", *state]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["pi-a", "pi-b"]
    file = tmp_path / "tokens.txt"
    assert (
        main(["fleet", "token", "--count", "3", "--prefix", "b", "--file", str(file), "--format", "json", *state]) == 0
    )
    said = json.loads(capsys.readouterr().out)
    assert said["names"] == ["b-0001", "b-0002", "b-0003"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    listed = dict(line.split() for line in file.read_text().splitlines())
    assert list(listed) == said["names"]
    from edge_runtime.trust.token import decode_token

    tokens = [decode_token(word) for word in [lines[0].split()[1], *listed.values()]]
    data = b"".join(path.read_bytes() for path in trust.folder.parent.glob(f"{LEDGER_FILE}*"))
    for token in tokens:
        assert token.server_url == "https://127.0.0.1:8443"
        assert token.authority_sha256 == trust.authority.sha256
        assert token.secret not in data
        assert token.secret.hex().encode() not in data
    ledger = Ledger(trust.folder.parent / LEDGER_FILE, read_only=True)
    kept = find_token(ledger, tokens[0].id.hex())
    assert kept is not None
    assert (kept.device, kept.state) == ("pi-a", "open")
    assert {record.action for record in audit_of(ledger)} == {"token"}


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ([], "name the devices"),
        (["pi", "--count", "2"], "name the devices"),
        (["--count", "0"], "not between 1"),
        (["pi", "pi"], "comes twice"),
        (["a/b"], "cannot be the name"),
        (["pi", "--expires", "soon"], "is not a time"),
        (["pi", "--expires", "9999d"], "not between"),
        (["pi", "--expires", "0s"], "not between"),
        (["pi", "--format", "json"], "not printed as JSON"),
        (["pi", "--url", "https://elsewhere:8443"], "certificate is not for elsewhere"),
        (["pi", "--url", "http://localhost:8443"], "not an https address"),
        (["pi", "--file", "/proc/version"], "is there already"),
    ],
)
def test_wrong_orders_are_refused(
    trust: Trust, capsys: pytest.CaptureFixture[str], words: list[str], what: str
) -> None:
    assert main(["fleet", "token", *words, "--state-dir", str(trust.folder.parent)]) == ConfigError.exit_code
    assert what in capsys.readouterr().err


def test_without_an_authority_there_are_no_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fleet", "token", "pi", "--state-dir", str(tmp_path)]) == ConfigError.exit_code
    assert "covey fleet init" in capsys.readouterr().err


def test_times_and_names_are_read() -> None:
    assert [duration_s(text) for text in ("90s", "30m", "1h", "1.5h", "7d")] == [90, 1800, 3600, 5400, 604800]
    assert numbered_names("pi", 3, {"pi-0002"}) == ["pi-0001", "pi-0003", "pi-0004"]


# -- how often ---------------------------------------------------------------------------------------------------------


def test_an_address_is_limited_and_guesses_count_more() -> None:
    now = [0.0]
    limit = RateLimit(lambda: now[0], Rate(100, 1.0), Rate(1000, 1.0))
    assert [limit.wait_s("a") for _ in range(100)] == [0.0] * 100
    assert limit.wait_s("a") == pytest.approx(1.0)
    assert limit.wait_s("b") == 0.0
    now[0] += 1.5
    assert limit.wait_s("a") == 0.0
    assert limit.wait_s("a") > 0.0
    guesses = 0
    while limit.wait_s("c") == 0.0:
        limit.guessed("c")
        guesses += 1
    assert guesses == 2
    assert limit.wait_s("c") >= 1.0


def test_addresses_are_forgotten_and_all_of_them_together_are_limited() -> None:
    limit = RateLimit(lambda: 0.0, Rate(20, 1.0), Rate(100, 1.0))
    assert sum(limit.wait_s(f"10.0.{index // 250}.{index % 250}") == 0.0 for index in range(10_000)) == 100
    assert len(limit) <= 4096


def test_the_error_of_joining_has_its_own_exit_code() -> None:
    assert EnrolmentError.exit_code == 12
