"""A Covey server behind Debian's nginx with the snippet of docs/brokers/nginx.conf, in which TLS is passed through."""

from __future__ import annotations

import contextlib
import hashlib
import re
import time
from typing import TYPE_CHECKING

import pytest
from fleets import free_port, wait_for
from joining import Site, joined, joining_site
from nginx import SNIPPET, has_nginx, nginx
from trusted import TrustedFleet

from edge_runtime.agent.config import read_edge_config
from edge_runtime.errors import NetworkError
from edge_runtime.network.address import TlsFiles
from edge_runtime.network.fetch import Fetcher
from edge_runtime.network.https import Https
from edge_runtime.network.upload import PIECE_BYTES, upload
from edge_runtime.protocol.plans import BlobRef
from edge_runtime.trust.exchange import NotNowError
from edge_runtime.trust.renew import renew_if_due
from server.storage.blobs import BlobStore
from server.trust.members import Members
from server.trust.tls import server_context
from server.web.http_app import make_app, serve_http
from server.web.members_only import members_only
from server.web.uploads import Uploads

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle

pytestmark = [
    pytest.mark.nginx,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not has_nginx(), reason="nginx is not installed: apt-get install nginx libnginx-mod-stream"),
]
HERE, PROXY = "127.0.0.1", "127.0.0.2"
JOIN, HTTP, MQTT = 8443, 8080, 8883


def snippet(ports: Mapping[int, tuple[int, int]]) -> str:
    """Return the documented stream on PROXY; ``ports``: for each documented port, its own and the server's."""
    text = SNIPPET.read_text()
    for documented, (own, servers) in ports.items():
        text, listens = re.subn(rf"listen {documented};", f"listen {PROXY}:{own};", text)
        text, passes = re.subn(rf"proxy_pass 192\.0\.2\.10:{documented};", f"proxy_pass {HERE}:{servers};", text)
        assert (listens, passes) == (1, 1)
    return text


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with joining_site(tmp_path / "server", hosts=[HERE, PROXY]) as made:
        yield made


@contextlib.contextmanager
def blobs(site: Site, folder: Path) -> Iterator[tuple[BlobStore, Uploads, int]]:
    """Serve blobs and uploads to the members of a fleet, as covey serve does."""
    served, uploads = BlobStore(folder / "blobs"), Uploads(BlobStore(folder / "uploads"))
    guarded = members_only(make_app(served, uploads), Members(site.ledger, "default").admits)
    with serve_http(guarded, HERE, 0, tls=server_context(site.trust, needs_certificate=True)) as port:
        yield served, uploads, port


def test_a_device_joins_renews_fetches_and_uploads_through_it(site: Site, tmp_path: Path) -> None:
    join_port, http_port = free_port(), free_port()
    servers = int(site.url.rpartition(":")[2])
    config = tmp_path / "pi" / "edge.toml"
    with blobs(site, tmp_path) as (served, uploads, port):
        ports = {JOIN: (join_port, servers), HTTP: (http_port, port), MQTT: (free_port(), free_port())}
        with nginx(tmp_path / "nginx", snippet(ports), (PROXY, join_port)):
            site.url = f"https://{PROXY}:{join_port}"
            assert joined(site.token("pi"), config).broker == f"mqtt://{PROXY}:1883"
            assert renew_if_due(config, time.time(), is_due=True) is not None  # it shows its certificate through it

            trust = config.with_name("edge-trust")
            tls = TlsFiles(str(trust / "ca.pem"), str(trust / "cert.pem"), str(trust / "key.pem"))
            url = f"https://{PROXY}:{http_port}/blobs"
            data = bytes(range(256)) * 12_000
            ref = served.add(data)
            assert Fetcher(url, tls=tls).data(ref.sha256, len(data)) == data
            with Https(url, tls).open("GET", f"/{ref.sha256}", {"Range": "bytes=1000-"}) as rest:
                assert (rest.status, rest.read()) == (206, data[1000:])

            sent = tmp_path / "delta"
            sent.write_bytes(data[1:])
            assert sent.stat().st_size > PIECE_BYTES  # more than one request
            wanted = BlobRef(hashlib.sha256(data[1:]).hexdigest(), len(data) - 1)
            uploads.expect(wanted, "job", "somebody-else")
            with pytest.raises(NetworkError):  # the server knows through the proxy who asks
                upload(url, wanted.sha256, sent, lambda _s: None, tls=tls)
            uploads.expect(wanted, "job", "pi")
            assert upload(url, wanted.sha256, sent, lambda _s: None, tls=tls) == wanted.size_bytes
            assert uploads.blobs.read(wanted.sha256) == data[1:]

            site.ledger.revoke_device("default", "pi", "stolen")
            with pytest.raises(NetworkError, match="the certificate was revoked"):
                Fetcher(url, tls=tls).data(ref.sha256, len(data))


def test_a_proxy_that_ends_tls_itself_is_turned_away(site: Site, tmp_path: Path) -> None:
    """As the page says: even with a certificate of the fleet's authority it is no member, and cannot say who is."""
    from edge_runtime.trust.keys import certificate_pem, own_key

    config, own = tmp_path / "pi" / "edge.toml", tmp_path / "proxy"
    joined(site.token("pi"), config)
    trust = config.with_name("edge-trust")
    own.mkdir()
    now = site.trust.server.not_valid_before_utc
    made = site.trust.authority.server([PROXY], own_key(own / "key").public_key(), now)
    (own / "cert").write_text(certificate_pem(made))
    tls = TlsFiles(str(trust / "ca.pem"), str(trust / "cert.pem"), str(trust / "key.pem"))
    with blobs(site, tmp_path) as (served, _, port):
        ref, http_port = served.add(b"x" * 100), free_port()
        paths = "".join(f"{kind}_temp_path {own}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi"))
        paths += "".join(f"{kind}_temp_path {own}/{kind};\n" for kind in ("uwsgi", "scgi"))
        http = f"""http {{
            access_log off; {paths}
            server {{
                listen {PROXY}:{http_port} ssl;
                ssl_certificate {own}/cert; ssl_certificate_key {own}/key;
                ssl_client_certificate {trust}/ca.pem; ssl_verify_client on;
                location / {{
                    proxy_pass https://{HERE}:{port};
                    proxy_ssl_protocols TLSv1.3;
                    proxy_ssl_certificate {own}/cert; proxy_ssl_certificate_key {own}/key;
                    proxy_set_header X-Covey-Member pi;
                    proxy_set_header X-SSL-Client-Cert $ssl_client_escaped_cert;
                }}
            }}
        }}"""
        with (
            nginx(tmp_path / "nginx", http, (PROXY, http_port)),
            pytest.raises(NetworkError, match="the certificate was revoked, or was not issued to a device"),
        ):
            Fetcher(f"https://{PROXY}:{http_port}/blobs", lambda _s: None, tls=tls).data(ref.sha256, 1000)


def test_a_proxy_without_a_server_behind_it_says_so_and_the_join_tries_again(site: Site, tmp_path: Path) -> None:
    join_port = free_port()
    ports = {JOIN: (join_port, free_port()), HTTP: (free_port(), free_port()), MQTT: (free_port(), free_port())}
    with nginx(tmp_path / "nginx", snippet(ports), (PROXY, join_port)):
        site.url = f"https://{PROXY}:{join_port}"
        with pytest.raises(NotNowError):
            joined(site.token("pi"), tmp_path / "pi" / "edge.toml")


@pytest.mark.slow
def test_a_job_with_everything_through_it(tmp_path: Path, tiny_bundle: Bundle) -> None:
    fleet = TrustedFleet(tmp_path, tiny_bundle)
    try:
        fleet.covey("fleet", "host", PROXY)
        server = fleet.open()
        said = {JOIN: fleet.said["join_port"], HTTP: fleet.said["http_port"], MQTT: fleet.said["mqtt_port"]}
        with nginx(tmp_path / "nginx", snippet({a: (b, b) for a, b in said.items()}), (PROXY, said[JOIN])):
            for seed, name in enumerate("ab"):
                config = read_edge_config(fleet.join(name, seed, host=PROXY))
                assert config.broker == f"mqtts://{PROXY}:{said[MQTT]}"
                assert config.server_url == f"https://{PROXY}:{said[HTTP]}"
                fleet.start(name)
            wait_for(lambda: list(fleet.states().values()).count("online") == 2, "two devices")
            fleet.submit("job", rounds=2, min_devices=2)
            assert fleet.covey("job", "watch", "job")["state"] == "finished"
        assert server.popen.poll() is None
    finally:
        fleet.stop()


def test_nothing_in_the_snippet_ends_tls() -> None:
    text = "\n".join(line.partition("#")[0] for line in SNIPPET.read_text().splitlines())
    assert "ssl" not in text
    assert "http {" not in text
