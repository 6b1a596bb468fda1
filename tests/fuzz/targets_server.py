"""What is fuzzed on the server's side: HTTP, joining, certificates, job.toml, the API, the ledger; and MQTT packets."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import itertools
import json
import shutil
import socket
from typing import TYPE_CHECKING

import msgspec
from asgi import ask, exchange, statuses
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from fleets import Fleet, free_port
from harness import Target
from joining import FACTS, joining_site

from edge_runtime.errors import ConfigError, ProtocolError, StorageError
from edge_runtime.network.address import parse_broker
from edge_runtime.network.mqtt_client import make_client
from edge_runtime.protocol.plans import BlobRef
from edge_runtime.signing.keys import read_public_keys
from edge_runtime.trust.identity import checked_certificate
from edge_runtime.trust.keys import (
    certificate_pem,
    check_signed_by,
    make_request,
    new_key,
    read_certificate,
    read_request,
)
from edge_runtime.trust.messages import EdgeFields, JoinAnswer, JoinRequest, RenewRequest
from edge_runtime.trust.token import decode_token
from server.client.address import socket_path
from server.errors import JobError
from server.job.job import read_job
from server.simulation.run import SimulateOptions, simulate
from server.storage import device_queries, queries
from server.storage.blobs import BlobStore
from server.storage.ledger import Ledger
from server.storage.ledger_address import LEDGER_FILE
from server.trust.join_app import make_join_app
from server.trust.rate_limit import Rate, RateLimit
from server.web.http_app import make_app, serve_http
from server.web.uploads import Uploads

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from targets_device import Factory

    from edge_runtime.bundle.folder import Bundle

_BLOB = bytes(range(256)) * 8
_SHA256 = hashlib.sha256(_BLOB).hexdigest()
_REFUSED = {400, 403, 404, 405, 409, 411, 412, 413, 414, 415, 416, 422, 423, 426, 429, 431, 460}
"""What HTTP may answer to a request that is not as it should be. 401 is the API's; 5xx is a fault of the server."""


class RefusedError(ConfigError):
    """The other side answered that it does not take this."""


def _judged(status: list[int], good: set[int]) -> None:
    if not status or status[0] in _REFUSED:
        raise RefusedError(f"answered {status}")
    assert status[0] in good, f"answered {status}"


@contextlib.contextmanager
def http(folder: Path, _bundle: Bundle) -> Iterator[Target]:
    """Downloads with ranges, and uploads: what is kept under a hash has it, and nothing else is written or served."""
    served, received = BlobStore(folder / "served"), BlobStore(folder / "received")
    served.add(_BLOB)
    uploads = Uploads(received)
    wanted = hashlib.sha256(_BLOB + b"up").hexdigest()
    (folder / "secret").write_bytes(b"nobody may read this")
    get = f"GET /blobs/{_SHA256} HTTP/1.1\r\nHost: x\r\nRange: bytes={{}}\r\nConnection: close\r\n\r\n"
    patch = f"PATCH /blobs/{wanted}/upload HTTP/1.1\r\nHost: x\r\nUpload-Offset: 0\r\nConnection: close\r\n"
    seeds = [get.format(value).encode() for value in ("0-", "5-9", "-7", "0-0,3-4,9-")]
    seeds += [f"{patch}Content-Length: {len(_BLOB) + 2}\r\n\r\n".encode() + _BLOB + b"up"]
    seeds += [f"{patch}Transfer-Encoding: chunked\r\n\r\n802\r\n".encode() + _BLOB + b"up\r\n0\r\n\r\n"]
    seeds += [f"HEAD /blobs/{wanted}/upload HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()]
    seeds += [b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"]

    with serve_http(make_app(served, uploads), "127.0.0.1", 0) as port:

        def run(data: bytes) -> None:
            uploads.expect(BlobRef(wanted, len(_BLOB) + 2), "job", "pi")
            answer = exchange(socket.create_connection(("127.0.0.1", port), timeout=20), data)
            assert b"nobody may read this" not in answer
            kept = sorted(path.name for path in received.root.glob("*")) if received.root.exists() else []
            assert {name.removesuffix(".part") for name in kept} <= {wanted}
            if wanted in kept:
                assert (received.root / wanted).read_bytes() == _BLOB + b"up"
            uploads.forget_all("job")
            received.remove(wanted)
            assert served.path(_SHA256) is not None
            _judged(statuses(answer), {200, 204, 206})

        yield Target(seeds, "text", run, (RefusedError,), 30)


@contextlib.contextmanager
def joins(folder: Path, _bundle: Bundle) -> Iterator[Target]:
    """The joining side: whoever gets a certificate had the token, and the certificate is for its name and key."""
    no_limit = Rate(1e9, 1e9)
    with joining_site(folder / "state") as site:
        app = make_join_app(site.enrolment, RateLimit(lambda: 0.0, no_limit, no_limit))
        token, key = decode_token(site.token("pi")), new_key()
        request = JoinRequest(token.id.hex(), token.secret.hex(), make_request(key, "pi"), FACTS)
        join = msgspec.json.encode(request)
        certificate = json.loads(ask(app, "POST", "/join", join, {})[1])["certificate"]
        der = base64.b64encode(x509.load_pem_x509_certificate(certificate.encode()).public_bytes(Encoding.DER)).decode()
        renewal = msgspec.json.encode(RenewRequest(make_request(key, "pi"))).decode()
        seeds = [
            json.dumps({"path": "/join", "body": join.decode()}).encode(),
            json.dumps({"path": "/renew", "body": renewal, "certificate": der}).encode(),
            json.dumps({"path": "/me", "method": "GET", "certificate": der}).encode(),
        ]

        def run(data: bytes) -> None:
            try:
                said = json.loads(data)
                shown = base64.b64decode(str(said.get("certificate") or ""))
                path, method, body = str(said["path"]), str(said.get("method", "POST")), str(said.get("body", ""))
            except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
                path, method, body, shown = "/join", "POST", data.decode("utf-8", "surrogateescape"), b""
            extensions = {"tls": {"client_certificate": shown}} if shown else {}
            status, answer = ask(
                app, method, path.encode(errors="replace").decode(), body.encode("utf-8", "surrogatepass"), extensions
            )
            if status == 200 and path in ("/join", "/renew"):
                made = read_certificate(json.loads(answer)["certificate"], "the answer's certificate")
                assert made.public_key() == key.public_key()
                assert made.subject.rfc4514_string() == "CN=pi"
                assert path == "/renew" or (token.secret.hex() in body)
            _judged([status], {200, 202})

        yield Target(seeds, "json", run, (RefusedError,), 250)


@contextlib.contextmanager
def certificates(folder: Path, _bundle: Bundle) -> Iterator[Target]:
    """Certificates and requests: only what the authority has signed, bit for bit, is taken for its own.

    A signature can be written in several ways: as (r, s) or (r, n - s), or with the zeros at its end called unused.
    What it is of can not.
    """
    with joining_site(folder / "state") as site:
        authority, key = site.trust.authority, new_key()
        token = decode_token(site.token("pi"))
        request = make_request(key, "pi")
        answer = site.enrolment.join(JoinRequest(token.id.hex(), token.secret.hex(), request, FACTS), "192.0.2.1")
    joined = x509.load_pem_x509_certificate(answer.certificate.encode())
    own = joined.public_bytes(Encoding.DER)
    csr = x509.load_pem_x509_csr(request.encode())
    path = folder / "keys.pem"
    signed = {each.tbs_certificate_bytes for each in (joined, authority.certificate, site.trust.signing)}

    def pem(data: bytes, what: str) -> str:
        lines = base64.encodebytes(data).decode()
        return f"-----BEGIN {what}-----\n{lines}-----END {what}-----\n"

    def run(data: bytes) -> None:
        path.write_bytes(data)
        taken = 0
        with contextlib.suppress(ConfigError):
            read_public_keys(path)
            taken += 1
        text = data.decode("utf-8", "replace")
        for form in (text, pem(data, "CERTIFICATE")):
            with contextlib.suppress(ProtocolError):
                found = read_certificate(form, "it")
                check_signed_by(found, authority.certificate, "it")
                assert found.tbs_certificate_bytes in signed
                taken += 1
            with contextlib.suppress(ProtocolError):
                said = JoinAnswer("joined", 5.0, form, "", answer.signing, EdgeFields("pi", "default", "mqtt://:1883"))
                checked_certificate(said, authority.certificate, key.public_key())
                taken += 1
        for form in (text, pem(data, "CERTIFICATE REQUEST")):
            with contextlib.suppress(ProtocolError):
                name, of = read_request(form)
                assert (name, of) == ("pi", key.public_key())
                taken += 1
        if not taken:
            raise RefusedError("nobody takes it")

    seeds = [own, csr.public_bytes(Encoding.DER), answer.certificate.encode(), request.encode()]
    seeds += [certificate_pem(site.trust.signing).encode()]
    yield Target(seeds, "bytes", run, (RefusedError,), 600)


@contextlib.contextmanager
def jobs(folder: Path, _bundle: Bundle) -> Iterator[Target]:
    """job.toml: what is accepted is a job whose rules can be made for its first and last round."""
    plain = b'name = "job"\neval_file = "test.jsonl"\nrounds = 3\nsteps = 2\nbatch_size = 4\ndevices = "tag:a, pi-3"\n'
    step = b"[step]\nback_perturbations = 4\nlearning_rate = 0.05\neps = 0.01\n"
    stld = b'[stld]\nsteps = 6\npersonal_share = 0.34\nlevels = [1, 2]\n[stld.device_levels]\nb = 2\n"c.d" = 0\n'
    more = b'weighting = "uniform"\nmethod = "mezo"\n[privacy]\nclip = 1.0\nnoise_multiplier = 1.0\n'
    bandit = b'[bandit]\nback_perturbations = [2, 4]\npolicy = "thompson"\nsplits = true\n'
    path = folder / "job.toml"

    def run(data: bytes) -> None:
        path.write_bytes(data)
        job = read_job(path)
        for number in (0, job.rounds - 1):
            assert job.rule_of(number).scalars_per_step > 0
            job.stld_of(number)

    seeds = [plain + step, plain + step + stld, plain + bandit]
    with contextlib.suppress(ConfigError):
        run(plain + more)
        seeds.append(plain + more)
    yield Target(seeds, "text", run, (ConfigError, JobError), 400)


@contextlib.contextmanager
def api(folder: Path, bundle: Bundle) -> Iterator[Target]:
    """The operator's API of a real server: nothing that is asked makes it fail, and it still answers afterwards."""
    (folder / "rows.jsonl").write_text('{"text": "good", "label": 1}\n')
    fleet = Fleet(folder, bundle, free_port(), external=False)
    process = fleet.stay()
    try:
        process.wait_event("serving")
        path = str(socket_path(fleet.state_dir))
        head = "{} /api/v1{} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        job = {"name": "nobody", "eval_file": str(folder / "rows.jsonl"), "devices": "absent-device"}
        bodies = [
            ("/jobs", {"job": job, "bundle": str(folder / "no-bundle"), "priority": 1}),
            ("/tokens", {"names": ["pi"], "server_url": "https://s:8443"}),
        ]
        seeds = [
            head.format("GET", where).encode() + b"\r\n"
            for where in ("/server", "/jobs", "/devices", "/jobs/x?after=1")
        ]
        for where, body in bodies:
            text = json.dumps(body)
            seeds.append(
                (
                    head.format("POST", where)
                    + f"Content-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n{text}"
                ).encode()
            )

        def run(data: bytes) -> None:
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(path)
            status = statuses(exchange(connection, data))
            assert process.popen.poll() is None, "the server ended"
            if status not in ([404], [409], [422]):  # a seed may ask for what this fleet does not have
                _judged(status, {200, 201, 204})

        yield Target(seeds, "text", run, (RefusedError,), 30)
    finally:
        fleet.stop()


@contextlib.contextmanager
def ledgers(folder: Path, _bundle: Bundle) -> Iterator[Target]:
    """The ledger's file: a damaged one is said to be, or it answers every question."""
    sound, work = folder / "sound", folder / "work"
    assert simulate(SimulateOptions(devices=3, rounds=2, cohort=2), state_dir=sound) is not None
    work.mkdir()
    path = work / LEDGER_FILE

    def run(data: bytes) -> None:
        shutil.rmtree(work)
        work.mkdir()
        path.write_bytes(data)
        with contextlib.closing(Ledger(path, durable=False)) as ledger:
            for job in queries.jobs_of(ledger, "simulated"):
                queries.offers_of(ledger, job.name)
            device_queries.devices_of(ledger)

    yield Target([(sound / LEDGER_FILE).read_bytes()], "bytes", run, (StorageError,), 40)


@contextlib.contextmanager
def packets(_folder: Path, _bundle: Bundle) -> Iterator[Target]:
    """What a broker sends: whatever it is, the thread that reads it lives on, and connects again."""
    connack, suback, puback = b"\x20\x02\0\0", b"\x90\x03\0\x01\x01", b"\x40\x02\0\x01"
    publish = b"\x32\x0e\0\x08covey/v1\0\x07hi"
    address = parse_broker("mqtt://127.0.0.1:1883")
    numbers = itertools.count()

    def run(data: bytes) -> None:
        client = make_client(address, f"covey-{next(numbers)}", None)
        topics: list[str] = []
        client.on_message = lambda _client, _data, message: topics.append(message.topic)
        ours, brokers = socket.socketpair()
        ours.setblocking(False)
        brokers.setblocking(False)
        client._sock = ours
        with brokers:
            sent = brokers.send(data) if data else 0
            brokers.shutdown(socket.SHUT_WR)
            for _ in range(sent + 1):  # a packet has a byte at least
                if client.loop_read() != 0:
                    break
                if client.socket() is None:
                    break

    yield Target(
        [connack + suback + publish, connack + puback, publish + b"\xd0\0" + b"\x34\x0a\0\x04abcd\0\x08x!"],
        "bytes",
        run,
        (),
        100,
    )


SERVER_TARGETS: dict[str, Factory] = {
    "http": http,
    "joins": joins,
    "certificates": certificates,
    "jobs": jobs,
    "api": api,
    "ledgers": ledgers,
    "packets": packets,
}
