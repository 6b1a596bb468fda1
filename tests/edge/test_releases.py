"""Nothing is loaded that the fleet has not signed, or that is older than what was taken; keys rotate."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from releasing import ReleaseSite, new_trust, sha

from edge_runtime.errors import CoveyError, NetworkError, StorageError
from edge_runtime.files import atomic
from edge_runtime.releases import accepted
from edge_runtime.releases.accepted import ACCEPTED_FILES, accepted_serials
from edge_runtime.releases.check import Wanted, check_release, next_key_list, own_key_list
from edge_runtime.releases.statement import (
    KEYS_TAG,
    PINS_FILE,
    RELEASE_TAG,
    Release,
    ReleaseError,
    Signature,
    Signed,
    decode_signed,
    encode,
    key_id,
    signed_bytes,
)
from server.trust.folder import open_trust
from server.trust.release_keys import finish_rotation, open_release_keys, public_bytes, rotate
from server.trust.releases import sign_release

if TYPE_CHECKING:
    from pathlib import Path

A, B = sha("a"), sha("b")
KEYS = [Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in (1, 2)]
PINNED = [public_bytes(key) for key in KEYS]
WANTED = Wanted("bundle", "default", A)


def statement(**changes: object) -> Release:
    fields = {
        "kind": "bundle",
        "fleet": "default",
        "name": "tiny/model",
        "sha256": A,
        "serial": 7,
        "keys_serial": 1,
        "made_at_s": 0,
    }
    return Release(**{**fields, **changes})  # type: ignore[arg-type]


def signed(release: Release, *keys: Ed25519PrivateKey, tag: bytes = RELEASE_TAG) -> bytes:
    body = encode(release)
    made = [Signature(key_id(public_bytes(key)), key.sign(signed_bytes(tag, body))) for key in keys]
    return encode(Signed(body, tuple(made)))


def reason_of(data: bytes, pinned: list[bytes] = PINNED, floor: int = 0) -> str:
    with pytest.raises(ReleaseError) as caught:
        check_release(data, WANTED, pinned, lambda _name: floor)
    assert caught.value.hint
    return caught.value.reason


@pytest.fixture(scope="module")
def trust_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fleet")
    new_trust(folder)
    return folder


@pytest.fixture
def site(tmp_path: Path) -> ReleaseSite:
    return ReleaseSite(tmp_path, new_trust(tmp_path / "server"))


@pytest.mark.parametrize("keys", [KEYS[:1], KEYS], ids=["one key", "an overlap"])
def test_a_release_with_any_byte_changed_is_refused(keys: list[Ed25519PrivateKey]) -> None:
    data, pinned = signed(statement(), *keys), [public_bytes(key) for key in keys]
    assert check_release(data, WANTED, pinned, lambda _name: 7).serial == 7
    for place in range(len(data)):
        for bits in (0x01, 0x80, 0xFF):
            damaged = bytearray(data)
            damaged[place] ^= bits
            try:
                found = check_release(bytes(damaged), WANTED, pinned, lambda _name: 0)
            except ReleaseError:
                continue
            # Of two signatures, one that names a key that is not known says nothing; what is accepted is the same.
            assert len(keys) == 2
            assert found == statement()


@given(st.binary(max_size=5000))
def test_no_bytes_are_a_release(data: bytes) -> None:
    assert reason_of(data) == "malformed"


@given(st.integers(0, 400), st.integers(0, 400), st.binary(max_size=80))
def test_a_release_that_is_cut_joined_or_spliced_is_refused(start: int, end: int, middle: bytes) -> None:
    data = signed(statement(), KEYS[0])
    changed = data[:start] + middle + data[end:]
    if changed != data:
        assert reason_of(changed, PINNED[:1]) in ("malformed", "altered", "foreign")


@pytest.mark.parametrize(
    ("release", "reason"),
    [
        (statement(fleet="other"), "other-fleet"),
        (statement(kind="wheel"), "other-kind"),
        (statement(kind="adapter"), "other-kind"),
        (statement(sha256=B), "other-content"),
        (statement(serial=6), "downgraded"),
    ],
)
def test_a_good_signature_of_something_else_is_refused(release: Release, reason: str) -> None:
    assert reason_of(signed(release, KEYS[0]), floor=7) == reason


def test_a_signature_for_another_use_or_by_another_key_is_refused() -> None:
    assert reason_of(signed(statement(), KEYS[0], tag=KEYS_TAG)) == "altered"
    assert reason_of(signed(statement(), KEYS[1]), PINNED[:1]) == "foreign"
    assert reason_of(signed(statement(), KEYS[0], KEYS[0])) == "malformed"
    assert reason_of(encode(statement())) == "malformed"
    assert reason_of(encode(Signed(encode(statement()), ()))) == "malformed"  # unsigned


def test_what_is_not_released_is_refused_and_said(site: ReleaseSite, tmp_path: Path) -> None:
    assert site.require(A) is None  # no pinned keys: as before
    assert site.asked == []
    site.pin()
    with pytest.raises(ReleaseError, match="is not signed by the fleet") as caught:
        site.require(A)
    assert caught.value.reason == "unsigned"
    site.book.take("bundle", "tiny/model", A)
    stored = tmp_path / "a.release"
    release = site.require(A, stored)
    assert release is not None
    assert (release.kind, release.sha256, release.name) == ("bundle", A, "tiny/model")

    def offline(_resource: str, _max_bytes: int) -> bytes | None:
        raise NetworkError("no route")

    assert site.require(A, stored, offline) == release  # what is on disk needs no server
    stored.write_bytes(stored.read_bytes()[:-1])
    with pytest.raises(NetworkError):
        site.require(A, stored, offline)
    assert site.require(A, stored) == release


def test_an_older_release_is_refused_and_two_jobs_side_by_side_are_not(site: ReleaseSite, tmp_path: Path) -> None:
    site.pin()
    site.book.take("bundle", "tiny/model", A)
    old, stored = site.book.release_of(A), tmp_path / "a.release"
    first = site.require(A, stored)
    site.book.take("bundle", "tiny/model", B)
    second = site.require(B)
    assert first is not None
    assert second is not None
    assert second.serial > first.serial
    with pytest.raises(ReleaseError) as caught:
        site.require(A, stored, lambda *_: old)  # what was recorded before
    assert caught.value.reason == "downgraded"
    again = site.require(A, stored)  # the server vouches for both while it has jobs for both
    assert again is not None
    assert again.serial == second.serial


def test_serials_of_other_kinds_and_names_are_not_compared(site: ReleaseSite) -> None:
    site.pin()
    site.book.take("bundle", "new", A)
    assert site.require(A) is not None
    site.now_s = 5.0  # the server's clock is lost
    site.book.take("bundle", "other", B)
    other = site.require(B)
    assert other is not None
    assert other.serial == 5


def test_one_damaged_copy_of_the_serials_is_healed_and_two_open_no_downgrade(site: ReleaseSite) -> None:
    site.pin()
    site.book.take("bundle", "tiny/model", A)
    site.require(A)
    whole = accepted_serials(site.device)
    for name in ACCEPTED_FILES:
        path = site.device / name
        data = path.read_bytes()
        for place in range(len(data)):
            path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
            assert accepted_serials(site.device) == whole
            assert path.read_bytes() == data
        path.unlink()
        assert accepted_serials(site.device) == whole
        path.write_bytes(b"")
        assert accepted_serials(site.device) == whole
    for name in ACCEPTED_FILES:
        (site.device / name).write_bytes(b"{}")
    for _ in range(2):
        with pytest.raises(StorageError, match="which releases this device has taken is not known") as caught:
            site.require(A)
        assert "remove" in caught.value.hint
    for name in ACCEPTED_FILES:
        (site.device / name).unlink()
    assert site.require(A) is not None


def test_a_device_that_is_killed_between_two_writes_forgets_no_serial(
    site: ReleaseSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.pin()
    site.book.take("bundle", "tiny/model", A)
    old = site.book.release_of(A)
    site.require(A)
    site.book.take("bundle", "tiny/model", B)
    written: list[str] = []

    def killed(path: Path, data: bytes) -> None:
        if written:
            raise KeyboardInterrupt
        written.append(path.name)
        atomic.write_atomically(path, data)

    with monkeypatch.context() as patched:
        patched.setattr(accepted, "write_atomically", killed)
        with pytest.raises(KeyboardInterrupt):
            site.require(B)
    assert written == [ACCEPTED_FILES[0]]
    with pytest.raises(ReleaseError, match="it is older"):
        site.require(A, None, lambda *_: old)


def test_keys_change_with_an_overlap_and_a_retired_key_is_refused(site: ReleaseSite) -> None:
    site.pin()
    site.book.take("bundle", "tiny/model", A)
    thief = site.book.release_of(A)  # the old key's own work stands for what a thief of it could sign
    site.require(A)
    trust = site.trust
    both = rotate(trust.folder, trust.fleet, site.now_s)
    assert len(both.keys) == 2
    with pytest.raises(CoveyError, match="not finished"):
        rotate(trust.folder, trust.fleet, site.now_s)

    # A list of keys that the pinned key has not signed teaches nothing, and the pinned key goes on deciding.
    stranger = ReleaseSite(site.device.parent / "stranger", new_trust(site.device.parent / "other"))
    site.answers["/release-keys"] = stranger.book.key_list()
    assert site.require(A) is not None
    assert len(own_key_list((site.device / PINS_FILE).read_bytes(), "default").keys) == 1
    del site.answers["/release-keys"]

    assert site.require(A) is not None  # hears of the new key, by a list that the old one has signed
    assert own_key_list((site.device / PINS_FILE).read_bytes(), "default") == both.listed
    finish_rotation(trust.folder, trust.fleet, site.now_s)
    assert site.require(A) is not None  # hears that the old one is retired
    with pytest.raises(ReleaseError) as caught:
        site.require(A, None, lambda resource, _most: thief if resource.endswith("release") else None)
    assert caught.value.reason == "foreign"


def test_a_device_that_was_away_for_the_whole_overlap_learns_the_key_when_it_renews(site: ReleaseSite) -> None:
    site.pin()
    old_list = site.book.key_list()
    site.book.take("bundle", "tiny/model", A)
    rotate(site.trust.folder, site.trust.fleet, site.now_s)
    finish_rotation(site.trust.folder, site.trust.fleet, site.now_s)
    with pytest.raises(ReleaseError) as caught:
        site.require(A)
    assert caught.value.reason == "foreign"
    assert "renew --now" in caught.value.hint
    assert site.pin()
    assert site.require(A) is not None
    assert not site.pin(old_list)  # a list that is older changes nothing
    assert site.require(A) is not None


def test_an_older_list_of_keys_is_refused_though_a_pinned_key_has_signed_it(site: ReleaseSite) -> None:
    first = site.book.key_list()
    rotate(site.trust.folder, site.trust.fleet, site.now_s)
    pinned = own_key_list(site.book.key_list(), "default")
    assert next_key_list(site.book.key_list(), pinned) is None
    with pytest.raises(ReleaseError) as caught:
        next_key_list(first, pinned)
    assert caught.value.reason == "downgraded"


def test_pinned_keys_with_any_byte_changed_let_nothing_through_and_are_healed_by_a_renewal(site: ReleaseSite) -> None:
    site.pin()
    site.book.take("bundle", "tiny/model", A)
    path = site.device / PINS_FILE
    data = path.read_bytes()
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(StorageError, match="nothing is loaded without"):
            site.require(A)
    path.write_bytes(b"")
    with pytest.raises(StorageError, match="renew --now"):
        site.require(A)
    assert site.pin()
    assert site.require(A) is not None


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(-(10**6), 10**6)), min_size=1, max_size=8),
)
def test_serials_ascend_whatever_the_servers_clock_says(trust_folder: Path, events: list[tuple[str, int]]) -> None:
    trust = open_trust(trust_folder)
    keys = [public_bytes(key) for key in open_release_keys(trust.folder, trust.fleet, 1.0).keys]
    last_serial, last_sha = 0, ""
    for content, offset_s in events:
        data = sign_release(trust, "adapter", "sentiment", sha(content), lambda at=offset_s: 2.0e9 + at)
        wanted, floor = Wanted("adapter", "default", sha(content)), last_serial
        release = check_release(data, wanted, keys, lambda _name, floor=floor: floor)  # type: ignore[misc]
        assert release.serial > last_serial if sha(content) != last_sha else release.serial == last_serial
        last_serial, last_sha = release.serial, sha(content)


def test_a_device_without_pinned_keys_loads_no_library_of_signatures(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\n"
        "import edge_runtime.store.bundles\n"
        "from edge_runtime.releases.require import require_release\n"
        f"require_release(pathlib.Path({str(tmp_path)!r}), 'default', 'bundle', '0' * 64, lambda *_: None)\n"
        "assert not [name for name in sys.modules if name.split('.')[0] == 'cryptography']\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def test_signed_statements_name_every_signer_once() -> None:
    assert [one.key_id for one in decode_signed(signed(statement(), *KEYS), "x").signatures] == list(
        map(key_id, PINNED)
    )
