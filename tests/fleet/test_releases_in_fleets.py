"""Real processes: a bundle that the fleet's key has not signed is not fetched; the key rotates while it works."""

from __future__ import annotations

import datetime as dt
import http.client
import shutil
from typing import TYPE_CHECKING

import pytest
from fleets import wait_for
from joining import joined, joining_site
from releasing import new_trust, sha
from trusted import TrustedFleet

from edge_runtime.agent.config import read_edge_config
from edge_runtime.bundle.folder import open_bundle
from edge_runtime.bundle.manifest import MANIFEST_FILE
from edge_runtime.engines.choose import Engines
from edge_runtime.errors import ConfigError, StorageError
from edge_runtime.files import atomic
from edge_runtime.network.fetch import Fetcher
from edge_runtime.releases.accepted import ACCEPTED_FILES
from edge_runtime.releases.check import own_key_list
from edge_runtime.releases.pins import take_key_list
from edge_runtime.releases.statement import PINS_FILE, ReleaseError
from edge_runtime.store.bundles import TrustPlace, install_bundle
from edge_runtime.store.store import Store
from edge_runtime.trust.renew import renew_if_due
from server.storage.blobs import BlobStore
from server.trust import release_keys
from server.trust.folder import has_trust
from server.trust.release_keys import KEY_LIST, RELEASE_KEY, finish_rotation, open_release_keys, rotate
from server.trust.releases import ReleaseBook
from server.web.http_app import make_app, serve_http

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def fleet(tmp_path: Path, tiny_bundle: Bundle) -> Iterator[TrustedFleet]:
    made = TrustedFleet(tmp_path, tiny_bundle)
    yield made
    made.stop()


def variant(bundle: Bundle, folder: Path, mark: bytes) -> Bundle:
    """Return a bundle of another hash: the same model, exported once more."""
    shutil.copytree(bundle.path, folder)
    manifest = folder / MANIFEST_FILE
    manifest.write_bytes(manifest.read_bytes() + mark)
    return open_bundle(folder)


def test_a_bundle_of_another_key_is_refused_before_it_is_fetched_and_the_key_changes_between_jobs(
    fleet: TrustedFleet, tmp_path: Path
) -> None:
    server = fleet.open()
    config = fleet.join("a")
    pins, state = config.with_name("edge-trust") / PINS_FILE, config.with_name("covey-state")
    trust = fleet.state_dir / "trust"
    device = fleet.start("a")
    wait_for(lambda: fleet.states().get("a") == "online", "the device")

    fleet.submit("good", rounds=1, min_devices=1)
    assert fleet.covey("job", "watch", "good")["state"] == "finished"
    first = fleet.bundle.sha256
    assert {path.name for path in (state / "bundles").iterdir()} == {first, f"{first}.release"}

    old = own_key_list(pins.read_bytes(), "default").keys
    fleet.covey("fleet", "rotate-release-key")
    fleet.bundle = variant(fleet.bundle, tmp_path / "b", b"\n")
    fleet.submit("overlap", rounds=1, min_devices=1)
    assert fleet.covey("job", "watch", "overlap")["state"] == "finished"
    both = own_key_list(pins.read_bytes(), "default").keys
    assert both[1:] == old
    fleet.covey("fleet", "rotate-release-key", "--finish")
    fleet.bundle = variant(fleet.bundle, tmp_path / "c", b"\n")
    fleet.submit("after", rounds=1, min_devices=1)
    assert fleet.covey("job", "watch", "after")["state"] == "finished"
    assert own_key_list(pins.read_bytes(), "default").keys == both[:1]

    # Somebody who can write the server's disk, and does not have the release key.
    other = new_trust(tmp_path / "other")
    shutil.copy(other.folder / RELEASE_KEY, trust / RELEASE_KEY)
    fleet.bundle = variant(fleet.bundle, tmp_path / "d", b"\n")
    fleet.submit("foreign", rounds=1, min_devices=1)
    why = "signed with a key that is not the fleet's"
    wait_for(lambda: why in device.stderr.read_text(), "the refusal")
    wait_for(lambda: why in server.stdout.read_text(), "the refusal in the server's events")
    assert not list((state / "bundles").glob(f"{fleet.bundle.sha256}*"))


def test_a_bundle_that_is_not_released_is_neither_fetched_nor_loaded_from_disk(
    tmp_path: Path, tiny_bundle: Bundle
) -> None:
    trust = new_trust(tmp_path / "server")
    book, blobs = ReleaseBook(trust), BlobStore(tmp_path / "blobs")
    blobs.add_bundle(tiny_bundle)
    store, place = Store(tmp_path / "device"), TrustPlace(tmp_path / "edge-trust", trust.fleet)
    sha256, engines = tiny_bundle.sha256, Engines()
    with serve_http(make_app(blobs, None, book), "127.0.0.1", 0) as port:
        fetcher = Fetcher(f"http://127.0.0.1:{port}/blobs", lambda _s: None)
        assert install_bundle(store, fetcher, sha256, engines, trust=place).sha256 == sha256  # no pinned keys: as ever
        take_key_list(place.folder, trust.fleet, book.key_list())
        with pytest.raises(ReleaseError, match="not signed by the fleet"):
            install_bundle(store, fetcher, sha256, engines, trust=place)
        book.take("bundle", "tiny", sha256)
        assert install_bundle(store, fetcher, sha256, engines, trust=place).sha256 == sha256
        got = get(port, f"/blobs/{sha('other')}/release"), get(port, "/blobs/release-keys")
        assert [status for status, _ in got] == [404, 200]
        assert got[0][1] == b"no such release"
    with serve_http(make_app(blobs, None), "127.0.0.1", 0) as port:
        assert get(port, "/blobs/release-keys") == (404, b"no such release")
        fetcher = Fetcher(f"http://127.0.0.1:{port}/blobs", lambda _s: None)
        assert install_bundle(store, fetcher, sha256, engines, trust=place).sha256 == sha256  # by the release on disk
        (store.bundles / f"{sha256}.release").unlink()
        with pytest.raises(ReleaseError, match="not signed by the fleet"):
            install_bundle(store, fetcher, sha256, engines, trust=place)


def get(port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_release_keys_come_with_joining_and_renewing_and_serials_outlive_joining_again(tmp_path: Path) -> None:
    with joining_site(tmp_path / "server") as site:
        folder, fleet = site.trust.folder, site.trust.fleet
        config = tmp_path / "a" / "edge.toml"
        joined(site.token("a"), config)
        trust = config.with_name("edge-trust")
        assert read_edge_config(config).signing is not None
        first = open_release_keys(folder, fleet, site.now_s)
        assert (trust / PINS_FILE).read_bytes() == first.key_list

        # A device that joined before there were release keys, and one whose file is damaged.
        for damaged in (False, True):
            (trust / PINS_FILE).unlink()
            if damaged:
                (trust / PINS_FILE).write_bytes(b"?")
            assert renew_if_due(config, site.now_s, asks_name=True) is None
            assert (trust / PINS_FILE).read_bytes() == first.key_list
        rotate(folder, fleet, site.now_s)
        new = finish_rotation(folder, fleet, site.now_s)
        assert renew_if_due(config, site.now_s, is_due=True) is not None
        assert (trust / PINS_FILE).read_bytes() == new.key_list

        for name in ACCEPTED_FILES:
            (trust / name).write_bytes(b"what was taken")
        joined(site.token("a"), config)
        assert [(trust / name).read_bytes() for name in ACCEPTED_FILES] == [b"what was taken"] * 2


def test_a_rotation_that_is_killed_between_two_writes_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trust = new_trust(tmp_path)
    before = open_release_keys(trust.folder, trust.fleet, 1.0)

    def killed(path: Path, data: bytes, *, is_private: bool = False) -> None:
        if path.name == KEY_LIST:
            raise KeyboardInterrupt
        atomic.write_atomically(path, data, is_private=is_private)

    for turn in (rotate, finish_rotation):
        with monkeypatch.context() as patched:
            patched.setattr(release_keys, "write_atomically", killed)
            with pytest.raises(KeyboardInterrupt):
                turn(trust.folder, trust.fleet, 1.0)
        after = open_release_keys(trust.folder, trust.fleet, 1.0)
        assert after.listed.serial > before.listed.serial
        assert after.listed == own_key_list(after.key_list, trust.fleet)
        assert len(after.keys) == (2 if turn is rotate else 1)
        before = after


def test_an_older_fleet_gets_a_release_key_and_a_damaged_or_open_one_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trust = new_trust(tmp_path)
    path = trust.folder / RELEASE_KEY
    path.unlink()
    now_s = dt.datetime.now(dt.timezone.utc).timestamp()
    made = open_release_keys(trust.folder, trust.fleet, now_s)
    assert has_trust(tmp_path)
    assert "add it to your backup" in caplog.text
    assert path.stat().st_mode & 0o777 == 0o600
    assert made.listed.keys == open_release_keys(trust.folder, trust.fleet, now_s).listed.keys
    path.chmod(0o644)
    with pytest.raises(StorageError, match="other users can read"):
        open_release_keys(trust.folder, trust.fleet, now_s)
    path.chmod(0o600)
    whole = path.read_bytes()
    for data in (b"", whole[:-3], b"x" + whole, whole * 3, whole.replace(b"PRIVATE", b"PUBLIC")):
        path.write_bytes(data)
        with pytest.raises(StorageError, match="is damaged") as caught:
            open_release_keys(trust.folder, trust.fleet, now_s)
        assert whole.splitlines()[1].decode() not in str(caught.value)
    path.write_bytes(whole)
    (trust.folder / KEY_LIST).write_bytes(b"")
    healed = open_release_keys(trust.folder, trust.fleet, now_s + 5)
    assert healed.listed.keys == made.listed.keys
    with pytest.raises(ConfigError, match="no rotation"):
        finish_rotation(trust.folder, trust.fleet, now_s)
