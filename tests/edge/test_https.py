"""Blobs over HTTPS with a private authority; and answers of proxies, which name the setting and not their HTML."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import ssl
import threading
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn
from certificates import Authority, Pair
from fleets import free_port, wait_for

from edge_runtime.agent.delta_uploads import DeltaUploads
from edge_runtime.commands.doctor_network import server_finding
from edge_runtime.errors import ConfigError, NetworkError
from edge_runtime.network.address import TlsFiles
from edge_runtime.network.fetch import Fetcher
from edge_runtime.network.https import AnswerError, Https
from edge_runtime.network.tls import tls_context
from edge_runtime.network.upload import upload
from edge_runtime.protocol.plans import BlobRef
from edge_runtime.store.store import Store
from server.storage.blobs import BlobStore
from server.web.http_app import make_app, serve_http
from server.web.uploads import Uploads

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DATA = bytes(range(256)) * 5000
SHA = hashlib.sha256(DATA).hexdigest()
HTML = b"<html><body><h1>nginx</h1></body></html>"


def no_sleep(_seconds: float) -> None:
    """Retries in tests do not wait."""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("https") / "authority")


@contextlib.contextmanager
def https_server(root: Path, pair: Pair, client_ca: Path | None = None) -> Iterator[str]:
    """Covey's own HTTP side behind TLS, with a blob and an upload that it expects; yields its address."""
    blobs, uploads = BlobStore(root / "blobs"), Uploads(BlobStore(root / "uploads"))
    blobs.add(DATA)
    uploads.expect(BlobRef(SHA, len(DATA)), "job", "pi")
    port = free_port()
    config = uvicorn.Config(
        make_app(blobs, uploads),
        port=port,
        log_level="critical",
        ssl_certfile=pair.cert,
        ssl_keyfile=pair.key,
        ssl_ca_certs=None if client_ca is None else str(client_ca),
        ssl_cert_reqs=ssl.CERT_NONE if client_ca is None else ssl.CERT_REQUIRED,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(lambda: server.started, "HTTPS server")
        yield f"https://localhost:{port}"
    finally:
        server.should_exit = True
        thread.join()


def test_a_private_authority_serves_blobs_uploads_and_doctor(authority: Authority, tmp_path: Path) -> None:
    tls = TlsFiles(str(authority.ca))
    with https_server(tmp_path, authority.make("server")) as url:
        Fetcher(f"{url}/blobs", no_sleep, tls=tls).file(SHA, len(DATA), tmp_path / "got")
        assert (tmp_path / "got").read_bytes() == DATA
        assert upload(f"{url}/blobs", SHA, tmp_path / "got", no_sleep, tls=tls) == len(DATA)
        finding, server_time = server_finding(url, tls)
        assert (finding.status, server_time is not None) == ("ok", True), finding
        for other in (None, TlsFiles()):
            with pytest.raises(NetworkError, match="is not trusted here") as raised:
                Fetcher(f"{url}/blobs", no_sleep, tls=other).data(SHA, len(DATA))
            assert "set ca_file in [tls]" in raised.value.hint
            with pytest.raises(NetworkError, match="is not trusted here"):
                upload(f"{url}/blobs", SHA, tmp_path / "got", no_sleep, tls=other)
            finding, _ = server_finding(url, other)
            assert (finding.status, finding.exit_code) == ("problem", 7)
            assert "is not trusted here" in finding.found


def test_the_device_hands_its_tls_files_to_both_directions(authority: Authority, tmp_path: Path) -> None:
    """A server that asks for a client certificate: only a device that shows its own gets through."""
    store = Store(tmp_path / "state")
    store.delta_file(SHA).write_bytes(DATA)
    own = authority.make("pi")
    tls = TlsFiles(str(authority.ca), str(own.cert), str(own.key))
    with https_server(tmp_path, authority.make("server"), authority.ca) as url:
        DeltaUploads(store, tls).send(SHA, f"{url}/blobs", ("job", 0, 0))
        assert Fetcher(f"{url}/blobs", no_sleep, tls=tls).data(SHA, len(DATA)) == DATA
        with pytest.raises(NetworkError, match="cannot fetch"):
            Fetcher(f"{url}/blobs", no_sleep, tls=TlsFiles(str(authority.ca))).data(SHA, len(DATA))


@pytest.mark.parametrize(
    ("kind", "words"),
    [("expired", "has expired"), ("not_yet_valid", "is not valid yet by this machine's clock")],
)
def test_a_servers_bad_certificate_is_named(authority: Authority, tmp_path: Path, kind: str, words: str) -> None:
    with https_server(tmp_path, getattr(authority, kind)("server")) as url:
        with pytest.raises(NetworkError, match=words):
            Fetcher(f"{url}/blobs", no_sleep, tls=TlsFiles(str(authority.ca))).data(SHA, len(DATA))
        plain = url.replace("https", "http")
        with pytest.raises(NetworkError, match="closes the connection"):
            Fetcher(f"{plain}/blobs", no_sleep).data(SHA, len(DATA))


def test_a_plain_server_spoken_to_with_tls_is_named(tmp_path: Path) -> None:
    with serve_http(make_app(BlobStore(tmp_path)), "127.0.0.1", 0) as port:
        with pytest.raises(NetworkError, match="does not speak TLS") as raised:
            Fetcher(f"https://127.0.0.1:{port}/blobs", no_sleep).data(SHA, 10)
        assert "write http://" in raised.value.hint


# -- proxies --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def proxy(code: int, *, body: bytes = HTML, kind: str = "text/html", **headers: str) -> Iterator[str]:
    """A proxy, or another server, that answers everything alike; yields its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.send_response(code)
            for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(b"" if self.command == "HEAD" else body)

        do_GET = do_HEAD = do_PATCH = answer  # noqa: N815 names of http.server

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("code", "named"),
    [
        (404, "--public-url"),
        (413, "client_max_body_size"),
        (401, "without a login"),
        (403, "without a login"),
        (405, "HEAD and PATCH"),
        (502, "proxy_pass"),
        (503, "start covey serve"),
        (504, "proxy_read_timeout"),
        (418, "--public-url"),
    ],
)
def test_an_answer_of_a_proxy_names_the_setting_and_not_its_html(tmp_path: Path, code: int, named: str) -> None:
    (tmp_path / "data").write_bytes(DATA)
    with proxy(code) as url:
        for transfer in (
            lambda: Fetcher(f"{url}/blobs", no_sleep).data(SHA, len(DATA)),
            lambda: upload(f"{url}/blobs", SHA, tmp_path / "data", no_sleep),
        ):
            with pytest.raises(NetworkError, match=str(code)) as raised:
                transfer()
            assert named in raised.value.hint
            assert "<" not in str(raised.value)
        finding, _ = server_finding(url, None)
    assert (finding.status, finding.exit_code, named in finding.advice) == ("problem", 7, True), finding


def test_a_page_of_another_server_is_no_blob(tmp_path: Path) -> None:
    with proxy(200) as url:
        with pytest.raises(NetworkError, match="web page") as raised:
            Fetcher(f"{url}/blobs", no_sleep).file(SHA, len(DATA), tmp_path / "got")
        assert "proxy_pass" in raised.value.hint
        assert not list(tmp_path.iterdir())
        assert server_finding(url, None)[0].status == "problem"
    with proxy(200, body=b'{"status": "ok"}', kind="application/json") as url:
        assert server_finding(url, None)[0].status == "problem"


def test_a_redirect_of_an_upload_and_an_https_port_are_named(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(DATA)
    where = "http://elsewhere.invalid/blobs"
    with proxy(302, Location=where) as url:
        with pytest.raises(NetworkError, match=r"elsewhere\.invalid is not known") as raised:
            upload(f"{url}/blobs", SHA, tmp_path / "data", no_sleep)
        assert f"answered with a redirect to {where}" in raised.value.what
        with pytest.raises(AnswerError, match=f"a redirect to {where}") as refused:
            Https(url, None).open("PATCH", "/blobs", {}, DATA)
        assert "--public-url" in refused.value.hint
    page = b"<html>400 The plain HTTP request was sent to HTTPS port</html>"
    with proxy(400, body=page) as url, pytest.raises(NetworkError, match="the port speaks HTTPS") as raised:
        Fetcher(f"{url}/blobs", no_sleep).data(SHA, len(DATA))
    assert "https://" in raised.value.hint


def test_coveys_own_answers_are_known_as_its_own(tmp_path: Path) -> None:
    """Doctor and the messages rely on the server's words; here they meet."""
    uploads = Uploads(BlobStore(tmp_path / "uploads"))
    (tmp_path / "data").write_bytes(DATA)
    with serve_http(make_app(BlobStore(tmp_path / "blobs"), uploads), "127.0.0.1", 0) as port:
        url = f"http://127.0.0.1:{port}"
        assert server_finding(url, None)[0].status == "ok"
        with pytest.raises(NetworkError, match="404: no such blob") as raised:
            Fetcher(f"{url}/blobs", no_sleep).data(SHA, len(DATA))
        assert "log of covey serve" in raised.value.hint
        with pytest.raises(NetworkError, match="404: no open plan expects this blob"):
            upload(f"{url}/blobs", SHA, tmp_path / "data", no_sleep)
        uploads.expect(BlobRef(SHA, 10), "job", "pi")
        with pytest.raises(NetworkError, match="413: more than the announced 10 bytes") as raised:
            upload(f"{url}/blobs", SHA, tmp_path / "data", lambda _s: None)
        assert "client_max_body_size" not in raised.value.hint
        # Behind a path that is not passed on, Covey's own server says "Not Found": the address is wrong.
        assert "--public-url" in server_finding(f"{url}/covey", None)[0].advice


def test_a_proxy_that_limits_uploads_only_is_found_by_doctor(tmp_path: Path) -> None:
    app = make_app(BlobStore(tmp_path / "blobs"), Uploads(BlobStore(tmp_path / "uploads")))

    async def limited(scope: Any, receive: Any, send: Any) -> None:
        sizes = [int(value) for name, value in scope.get("headers", []) if name == b"content-length"]
        if max(sizes, default=0) <= 100_000:
            await app(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 413, "headers": [(b"content-type", b"text/html")]})
        await send({"type": "http.response.body", "body": HTML})

    with serve_http(limited, "127.0.0.1", 0) as port:  # type: ignore[arg-type]
        finding, _ = server_finding(f"http://127.0.0.1:{port}", None)
    assert (finding.status, "client_max_body_size" in finding.advice) == ("problem", True), finding


# -- files ----------------------------------------------------------------------------------------------------------


def test_tls_files_that_cannot_be_used_are_named(authority: Authority, tmp_path: Path) -> None:
    pair, other = authority.make("pi"), authority.make("pi")
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("not PEM")
    ca = str(authority.ca)
    for files, words in (
        (TlsFiles(str(garbage)), "holds no certificate"),
        (TlsFiles(ca, str(pair.cert), str(other.key)), "does not belong to the certificate"),
        (TlsFiles(ca, str(garbage), str(pair.key)), "are not a certificate with its key"),
        (TlsFiles(ca, None, str(pair.key)), "key_file is set without cert_file"),
        (TlsFiles(str(tmp_path / "gone")), "there is no file"),
        (TlsFiles(str(tmp_path)), "cannot be read"),
    ):
        with pytest.raises(ConfigError, match=words) as raised:
            tls_context(files)
        assert raised.value.hint
        with pytest.raises(ConfigError, match=words):
            Fetcher("https://localhost/blobs", tls=files)


def test_an_encrypted_key_is_said_and_not_asked_for(authority: Authority, tmp_path: Path) -> None:
    import subprocess

    pair, locked = authority.make("pi"), tmp_path / "locked.key"
    words = ["openssl", "pkey", "-in", str(pair.key), "-aes128", "-passout", "pass:x", "-out", str(locked)]
    subprocess.run(words, check=True)
    with pytest.raises(ConfigError, match="is encrypted with a password"):
        tls_context(TlsFiles(None, str(pair.cert), str(locked)))
