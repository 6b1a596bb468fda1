"""Devices fetch blobs from a mirror: who is told of it, and Debian's nginx with the snippet of docs/brokers."""

from __future__ import annotations

import contextlib
import datetime as dt
import re
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from bench import JOB, Bench, ScriptedDevice, bench_of, coordinator, good_report, run_with, sync, talk
from fleets import free_port
from joining import Site, joined, joining_site
from nginx import BLOBS_SNIPPET, has_nginx, nginx

from edge_runtime.agent.birth import METHODS
from edge_runtime.errors import NetworkError
from edge_runtime.network.address import TlsFiles
from edge_runtime.network.fetch import Fetcher
from edge_runtime.network.https import Https
from edge_runtime.network.mirror import Mirrors
from edge_runtime.protocol.messages import encode_message
from edge_runtime.protocol.presence import BLOB_MIRROR
from edge_runtime.protocol.side_messages import Release
from edge_runtime.store.bundles import fetch_bundle
from edge_runtime.store.versions import read_versions
from edge_runtime.trust.keys import certificate_pem, own_key
from server.storage.blobs import BlobStore
from server.trust.members import Members
from server.trust.tls import server_context
from server.web.http_app import make_app, serve_http
from server.web.members_only import members_only

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.protocol.plans import TrainPlan

HERE, MIRROR = "127.0.0.1", "127.0.0.2"
NOBODY = "http://127.0.0.1:9/blobs"


@pytest.fixture
def bench(tmp_path: Path, tiny_bundle: Bundle) -> Iterator[Bench]:
    with bench_of(tmp_path, tiny_bundle) as made:
        yield made


def test_a_device_has_bundle_and_adapter_from_the_mirror_alone(bench: Bench) -> None:
    adapter, _, _ = bench.next_adapter()
    adapter = msgspec.structs.replace(adapter, log=None, log_base_sha256=None)
    (report,), finished = talk(bench, [sync(bench, adapter, blob_url=NOBODY, blob_mirror=bench.url)])
    assert (type(report).__name__, report.adapter_sha256) == ("Synced", adapter.file.sha256)
    assert finished is not None
    assert finished.adapter_sha256 == adapter.file.sha256


def test_a_release_is_fetched_from_the_mirror(bench: Bench) -> None:
    agent, server = bench.agent(), bench.hub.join()
    theta = bench.bundle.initial_adapter() * 2
    blob = bench.blobs.add(theta.tobytes())
    release = Release(
        rollout=1,
        kind="adapter",
        step="switch",
        sha256=blob.sha256,
        size_bytes=blob.size_bytes,
        bundle_sha256=bench.bundle.sha256,
        blob_url=NOBODY,
        blob_mirror=bench.url,
        file_name=None,
    )
    server.publish(bench.topic("release"), encode_message(release))
    for _ in range(6):
        agent.serve_waiting()
    current = read_versions(bench.store).current
    assert current is not None
    assert current.adapter_sha256 == blob.sha256


def test_only_devices_that_know_a_mirror_are_told_of_it(bench: Bench) -> None:
    told: dict[str, Any] = {}

    def device(name: str, methods: list[str]) -> ScriptedDevice:
        def answer(plan: TrainPlan) -> list[Any]:
            told[name] = plan.blob_mirror
            return [good_report(plan, name)]

        made = ScriptedDevice(bench, name, answer)
        made.birth = msgspec.structs.replace(made.birth, methods=methods)
        return made

    older = [method for method in METHODS if method != BLOB_MIRROR]
    devices = [device("new", METHODS), device("old", older)]
    synced: dict[str, Any] = {}
    for one in devices:
        one.synced = lambda plan, one=one, then=one.synced: (synced.update({one.name: plan.blob_mirror}), then(plan))[1]  # type: ignore[method-assign]
    job = msgspec.structs.replace(JOB, min_devices=2, min_reports=2)
    with coordinator(bench, job, blob_mirror="https://mirror/blobs") as (made, _ledger):
        assert run_with(made, devices)
    assert told == synced == {"new": "https://mirror/blobs", "old": msgspec.UNSET}


class Counting:
    """An application that notes each path that it is asked for."""

    def __init__(self, app: Any) -> None:
        self.app, self.asked = app, list[str]()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            self.asked.append(scope["path"])
        await self.app(scope, receive, send)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with joining_site(tmp_path / "server", hosts=[HERE, "localhost"]) as made:
        yield made


def member(site: Site, folder: Path, name: str) -> TlsFiles:
    """Let a device join; return its files."""
    joined(site.token(name), folder / name / "edge.toml")
    trust = folder / name / "edge-trust"
    return TlsFiles(str(trust / "ca.pem"), str(trust / "cert.pem"), str(trust / "key.pem"))


def revoke(site: Site, folder: Path, *serials: str) -> None:
    """Write the list of revoked certificates, as covey fleet mosquitto does."""
    from cryptography.hazmat.primitives.serialization import Encoding

    listed = site.trust.authority.revoked(serials, dt.datetime.now(dt.timezone.utc))
    (folder / "revoked.pem").write_bytes(listed.public_bytes(Encoding.PEM))


@contextlib.contextmanager
def mirror(site: Site, folder: Path, server_port: int, name: str = "nginx") -> Iterator[str]:
    """Run nginx with the documented snippet, as a member of the fleet; yields the address of its blobs."""
    files, port = folder / "covey", free_port()
    own = member(site, folder, f"mirror-{name}")
    text = BLOBS_SNIPPET.read_text()
    for documented, ours in (
        ("listen 8081 ssl;", f"listen {MIRROR}:{port} ssl;"),
        ("https://192.0.2.10:8080;", f"https://{HERE}:{server_port};"),
        ("/var/cache/nginx/covey", str(folder / "cache")),
        ("proxy_ssl_name server.example;", "proxy_ssl_name localhost;"),
        ("/etc/nginx/covey/member.pem", str(own.cert_file)),
        ("/etc/nginx/covey/member-key.pem", str(own.key_file)),
        ("/etc/nginx/covey/", f"{files}/"),
    ):
        assert documented in text
        text = text.replace(documented, ours)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in kinds)
    with nginx(folder / name, f"http {{ access_log off;\n{temporary}{text}\n}}", (MIRROR, port)):
        yield f"https://{MIRROR}:{port}/blobs"


@pytest.mark.nginx
@pytest.mark.timeout(600)
@pytest.mark.skipif(not has_nginx(), reason="nginx is not installed: apt-get install nginx libnginx-mod-stream")
def test_what_one_device_has_fetched_through_nginx_the_next_has_without_the_server(
    site: Site, tmp_path: Path, tiny_bundle: Bundle
) -> None:
    files = tmp_path / "covey"
    files.mkdir()
    key = own_key(files / "mirror-key.pem").public_key()
    now = site.trust.server.not_valid_before_utc
    (files / "mirror.pem").write_text(certificate_pem(site.trust.authority.broker([MIRROR], key, now)))
    first, second, third = (member(site, tmp_path, name) for name in ("first", "second", "third"))
    (files / "ca.pem").write_text((tmp_path / "first" / "edge-trust" / "ca.pem").read_text())
    revoke(site, files)
    blobs = BlobStore(tmp_path / "blobs")
    blobs.add_bundle(tiny_bundle)
    adapter = blobs.add(bytes(range(256)) * 5000)
    app = Counting(members_only(make_app(blobs), Members(site.ledger, "default").admits))

    def fetches(tls: TlsFiles, name: str, url: str) -> None:
        """Fetch the bundle and the adapter as a device does whose server is not there."""
        fetcher = Fetcher(NOBODY, lambda _s: None, tls=tls, mirror=Mirrors(tls).at(url))
        found = fetch_bundle(fetcher, tiny_bundle.sha256, tmp_path / name / "bundles", lambda _bundle: None)
        assert found.sha256 == tiny_bundle.sha256
        fetcher.file(adapter.sha256, adapter.size_bytes, tmp_path / name / "adapter")

    with serve_http(app, HERE, 0, tls=server_context(site.trust, needs_certificate=True)) as port:
        with mirror(site, tmp_path, port) as url:
            fetches(first, "first", url)
            once = list(app.asked)
            assert len(once) == len(set(once)) > len(tiny_bundle.manifest.files)
            fetches(second, "second", url)
            assert app.asked == once  # nothing reached the server

            with Https(url, second).open("GET", f"/{adapter.sha256}", {"Range": "bytes=1000-1009"}) as part:
                assert (part.status, part.read()) == (206, bytes(range(256))[1000 % 256 : 1000 % 256 + 10])
                assert part.headers["X-Cache"] == "HIT"
                assert part.headers["ETag"] == f'"{adapter.sha256}"'
                assert "immutable" in part.headers["Cache-Control"]
            for resource in (f"/{adapter.sha256}/upload", f"/{adapter.sha256}/release", "/release-keys", "/../healthz"):
                with pytest.raises(NetworkError):
                    Https(url, second).open("GET", resource)
            with pytest.raises(NetworkError):
                Https(url, second).open("PATCH", f"/{adapter.sha256}", data=b"x")
            with pytest.raises(NetworkError):  # who has no certificate of the fleet gets nothing
                Https(url, TlsFiles(second.ca_file)).open("GET", f"/{adapter.sha256}")
            assert app.asked == once
            with pytest.raises(NetworkError):
                Https(url, second).open("GET", f"/{'0' * 64}")  # a blob that is not there is not kept either
            with contextlib.suppress(NetworkError):
                Https(url, second).open("GET", f"/{'0' * 64}")
            assert app.asked[len(once) :] == [f"/blobs/{'0' * 64}"] * 2

        (record,) = certificates(site, "third")
        revoke(site, files, record)
        with mirror(site, tmp_path, port, "again") as url:
            fetches(second, "third-time", url)  # the cache outlives a restart
            with pytest.raises(NetworkError):
                Https(url, third).open("GET", f"/{adapter.sha256}")


def certificates(site: Site, device: str) -> list[str]:
    from server.storage.trust_queries import certificates_of

    return [found.serial for found in certificates_of(site.ledger, "default", device)]


def test_the_snippet_lets_nobody_in_without_a_certificate() -> None:
    text = "\n".join(line.partition("#")[0] for line in BLOBS_SNIPPET.read_text().splitlines())
    for line in ("ssl_verify_client on;", "ssl_crl /etc/nginx/covey/revoked.pem;", "proxy_ssl_verify on;"):
        assert line in text
    assert re.findall(r"location ([^{]+)\{", text) != []
    assert text.count("proxy_pass") == 1
