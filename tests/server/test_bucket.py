"""A bucket that refuses, is not there, goes away and comes back; where its keys come from, and that no text has one."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from s3 import KEY, READING, S3, SECRET

from edge_runtime.errors import ConfigError, StorageError
from server.cli import main
from server.serving.options import ServeOptions
from server.serving.stores import StoppedError, locked_stores
from server.storage.aws_settings import AwsSettings, aws_settings
from server.storage.backup import create_backup, restore_backup
from server.storage.blob_address import NOTE_FILE, bucket_and_prefix, bucket_beside, keep_bucket
from server.storage.bucket import Bucket
from server.storage.bucket_blobs import BucketBlobs
from server.storage.postgres_database import LOST_S
from server.storage.records import ClosedRound, RoundFigures


def never(_seconds: float) -> None:
    raise AssertionError("nobody waits")


class Clock:
    """Time that passes only while somebody waits, and then faster."""

    def __init__(self, at: Callable[[float], object] = lambda _now: None, *, faster: float = 1.0) -> None:
        self.now, self._at, self._faster = 0.0, at, faster

    def sleep(self, seconds: float) -> None:
        self.now += seconds * self._faster
        self._at(self.now)


def bucket_with(s3: S3, address: str, clock: Clock) -> Bucket:
    return Bucket(address, s3.settings(), sleep=clock.sleep, clock=lambda: clock.now)


def test_a_bucket_that_can_be_used_keeps_no_probe(s3: S3) -> None:
    address = s3.new_bucket()
    Bucket(address, s3.settings(), sleep=never).check()
    assert s3.objects(address) == {}


@pytest.mark.parametrize("missing", ["s3:PutObject", "s3:GetObject", "s3:ListBucket", "s3:DeleteObject"])
def test_a_permission_that_is_missing_is_named_at_once(s3: S3, missing: str) -> None:
    address = s3.new_bucket()
    actions = [action for action in (*READING, "s3:PutObject", "s3:DeleteObject") if action != missing]
    with s3.only(actions) as settings, pytest.raises(StorageError, match="AccessDenied") as raised:
        Bucket(address, settings, sleep=never).check()
    assert address in raised.value.what
    assert raised.value.hint is not None
    assert missing.removeprefix("s3:") in raised.value.hint
    assert raised.value.exit_code == 8


def test_a_bucket_that_is_not_there_is_named_at_once(s3: S3) -> None:
    with pytest.raises(StorageError, match="s3://no-such-bucket-here/x: NoSuchBucket") as raised:
        Bucket("s3://no-such-bucket-here/x", s3.settings(), sleep=never).check()
    assert raised.value.hint is not None
    assert "make the bucket" in raised.value.hint


def test_a_server_does_not_start_without_its_bucket(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in s3.environment().items():
        monkeypatch.setenv(name, value)
    state_dir = tmp_path / "state"
    command = ["serve", "--state-dir", str(state_dir), "--blobs", "s3://no-such-bucket-here/x", "--mqtt-port", "0"]
    assert main(command) == 8
    assert "NoSuchBucket" in capsys.readouterr().err
    assert bucket_beside(state_dir) is None  # it may be mistyped


def test_a_bucket_that_does_not_answer_is_waited_for_at_the_start(s3: S3, caplog: pytest.LogCaptureFixture) -> None:
    address = s3.new_bucket()
    s3.stop()

    def at(now: float) -> None:
        if now == 5.0:
            s3.start()

    clock = Clock(at)
    bucket_with(s3, address, clock).check()
    assert clock.now == 5.0
    assert "waiting: cannot write to the blobs s3://" in caplog.text
    assert "are back" in caplog.text


@pytest.fixture
def away(s3: S3) -> Iterator[S3]:
    """A server that a test stops, and that runs again after it."""
    yield s3
    s3.stop()
    s3.start()


def test_a_bucket_that_stays_away_ends_the_start_and_later_the_server(away: S3) -> None:
    address, clock = away.new_bucket(), Clock(faster=10.0)
    bucket = bucket_with(away, address, clock)
    away.stop()
    with pytest.raises(StorageError, match="cannot write to the blobs"):
        bucket.check()
    assert clock.now == 30.0
    began = clock.now
    with pytest.raises(StorageError, match="cannot write to the blobs"):
        bucket.put("x", b"x")
    assert clock.now - began == LOST_S


@pytest.mark.parametrize("large", [False, True])
def test_what_is_written_while_it_is_away_is_there_whole_when_it_is_back(s3: S3, tmp_path: Path, large: bool) -> None:
    address = s3.new_bucket()
    data = b"0123456789abcdef" * ((12 << 20) // 16 if large else 10)

    def at(now: float) -> None:
        if now == 5.0:
            s3.start()

    clock = Clock(at)
    store = BucketBlobs(bucket_with(s3, address, clock), "blobs", tmp_path / "copies")
    s3.stop()
    blob = store.add(data)
    assert clock.now == 5.0
    assert s3.objects(address) == {f"blobs/{blob.sha256}": data}


def test_a_copy_of_what_is_gone_and_an_unfinished_file_go_at_the_next_start(s3: S3, tmp_path: Path) -> None:
    address, clock = s3.new_bucket(), Clock()
    mine, others = (BucketBlobs(bucket_with(s3, address, clock), "blobs", tmp_path / name) for name in ("a", "b"))
    gone, kept = mine.add(b"1").sha256, mine.add(b"2").sha256
    others.remove(gone)
    others.close(120.0)
    mine.temporary().write_bytes(b"half")
    mine.partial(gone).write_bytes(b"half")
    mine.begin(set)
    assert {path.name for path in mine.root.iterdir()} == {kept, f"{gone}.part"}


def test_a_copy_that_is_damaged_is_fetched_again(s3: S3, tmp_path: Path) -> None:
    store = BucketBlobs(Bucket(s3.new_bucket(), s3.settings()), "blobs", tmp_path)
    sha256 = store.add(b"content").sha256
    (tmp_path / sha256).write_bytes(b"damaged")
    path = store.whole(sha256)
    assert path is not None
    assert path.read_bytes() == b"content"


def test_a_server_that_waits_for_its_bucket_can_be_stopped(
    away: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in away.environment().items():
        monkeypatch.setenv(name, value)
    options = ServeOptions(state_dir=tmp_path, blobs=away.new_bucket())
    asked = 0

    def should_stop() -> bool:
        nonlocal asked
        asked += 1
        return True

    away.stop()
    with pytest.raises(StoppedError), locked_stores(options, should_stop):
        pass
    assert asked == 1


@pytest.mark.sqlite("a backup copies the file")
def test_a_backup_has_what_is_in_the_bucket(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3.environment().items():
        monkeypatch.setenv(name, value)
    address = s3.new_bucket()
    options = ServeOptions(state_dir=tmp_path / "state", blobs=address)
    with locked_stores(options, lambda: False) as stores:
        adapter, log = stores.blobs.add(b"adapter").sha256, stores.blobs.add(b"log").sha256
        stores.ledger.begin_job("job", "default", "b" * 64, {"rounds": 2})
        stores.ledger.open_round("job", 0, 0, '{"split": 2, "rule": {}}', "a" * 64, None, {"pi": None})
        figures = RoundFigures(2, None, None, None, None)
        stores.ledger.close_round("job", 0, ClosedRound(0, "a" * 64, adapter, log, 9, 5, 1.5, figures))
    create_backup(options.state_dir, tmp_path / "backup.tar")
    restore_backup(tmp_path / "backup.tar", tmp_path / "restored")
    assert (tmp_path / "restored" / "blobs" / adapter).read_bytes() == b"adapter"
    assert bucket_beside(tmp_path / "restored") is None
    s3.write(address, f"blobs/{adapter}", b"damaged")
    with pytest.raises(StorageError, match=f"{adapter} is missing, and a job needs it"):
        create_backup(options.state_dir, tmp_path / "other.tar")


# -- settings ----------------------------------------------------------------------------------------------------------


def test_no_message_and_no_log_has_a_key(s3: S3, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "a-secret-that-nobody-may-see"  # noqa: S105 of nobody
    settings = AwsSettings("eu-central-1", s3.url, KEY, secret, "a-token-that-nobody-may-see")
    texts = [repr(settings)]
    with s3.only(READING), pytest.raises(StorageError) as refused:
        Bucket("s3://bucket/x", settings, sleep=never).check()
    nowhere = AwsSettings("eu-central-1", "http://127.0.0.1:1", KEY, secret)
    clock = Clock(faster=10.0)
    with pytest.raises(StorageError) as lost:
        Bucket("s3://bucket/x", nowhere, sleep=clock.sleep, clock=lambda: clock.now).check()
    credentials = tmp_path / "credentials"
    credentials.write_text(f"aws_secret_access_key = {secret}\n")
    with pytest.raises(ConfigError, match="no file of AWS settings") as unreadable:
        aws_settings({"AWS_SHARED_CREDENTIALS_FILE": str(credentials)}, tmp_path)
    for raised in (refused.value, lost.value, unreadable.value):
        texts += [str(raised), raised.what, str(raised.hint)]
    with pytest.raises(ConfigError, match="has a user or a password") as user:
        aws_settings({"AWS_ENDPOINT_URL": f"https://me:{secret}@s3.example"}, tmp_path)
    own = AwsSettings("eu-central-1", f"http://me:{secret}@127.0.0.1:1", KEY, secret)
    with pytest.raises(StorageError) as named:
        Bucket("s3://bucket/x", own, sleep=clock.sleep, clock=lambda: clock.now).check()
    for raised in (user.value, named.value):
        texts += [raised.what, str(raised.hint)]
    texts += [record.getMessage() for record in caplog.records if record.name.startswith(("server", "edge_runtime"))]
    assert any("waiting" in text for text in texts)
    assert not [text for text in texts if secret in text or "a-token" in text]


def test_the_environment_goes_before_the_files(tmp_path: Path) -> None:
    folder = tmp_path / ".aws"
    folder.mkdir()
    (folder / "credentials").write_text(
        "[default]\naws_access_key_id = file\naws_secret_access_key = of-file\naws_session_token = token\n"
        "[other]\naws_access_key_id = other\naws_secret_access_key = of-other\n"
    )
    (folder / "config").write_text(
        "[default]\nregion = eu-west-1\n[profile other]\nregion = eu-west-2\nendpoint_url = https://s3.example\n"
    )
    assert aws_settings({}, tmp_path) == AwsSettings("eu-west-1", None, "file", "of-file", "token")
    assert aws_settings({"AWS_PROFILE": "other"}, tmp_path) == AwsSettings(
        "eu-west-2", "https://s3.example", "other", "of-other"
    )
    environment = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "r"}
    environment |= {"AWS_ENDPOINT_URL": "https://a", "AWS_ENDPOINT_URL_S3": "https://b"}
    assert aws_settings(environment, tmp_path) == AwsSettings("r", "https://b", "id", "secret")
    with pytest.raises(ConfigError, match="has no secret"):
        aws_settings({"AWS_ACCESS_KEY_ID": "id"}, tmp_path)  # keys of both do not mix
    with pytest.raises(ConfigError, match="AWS_PROFILE is nobody"):
        aws_settings({"AWS_PROFILE": "nobody"}, tmp_path)


def test_without_keys_the_machine_s_role_is_used(tmp_path: Path) -> None:
    assert aws_settings({}, tmp_path) == AwsSettings("us-east-1", None)


@pytest.mark.parametrize(
    "address",
    [
        *("", "x", "s3://", "s3://UPPER/x", "s3://b/x", "s3://bucket//x", "s3://bucket/../x", "gs://bucket/x"),
        *("s3://bucket/a b", f"s3://{KEY}:{SECRET}@bucket/x", f"s3://bucket/x?secret_access_key={SECRET}"),
    ],
)
def test_what_is_no_address_is_refused(tmp_path: Path, address: str) -> None:
    with pytest.raises(ConfigError, match="no address of a bucket") as raised:
        keep_bucket(tmp_path, address)
    assert SECRET not in raised.value.what
    assert not (tmp_path / NOTE_FILE).exists()


def test_a_state_directory_remembers_its_bucket(tmp_path: Path) -> None:
    assert bucket_beside(tmp_path) is None
    assert keep_bucket(tmp_path, "s3://bucket/a/b/")
    assert not keep_bucket(tmp_path, "s3://bucket/a/b")
    assert bucket_beside(tmp_path) == "s3://bucket/a/b"
    with pytest.raises(ConfigError, match="are in s3://bucket/a/b, not in s3://bucket"):
        keep_bucket(tmp_path, "s3://bucket")
    assert bucket_and_prefix("s3://bucket") == ("bucket", "")
    for damaged in (b"", b"\xff\xfe", b"s3://"):
        (tmp_path / NOTE_FILE).write_bytes(damaged)
        with pytest.raises(StorageError, match="no address of a bucket"):
            bucket_beside(tmp_path)


def test_blobs_do_not_move_by_themselves(tmp_path: Path) -> None:
    (tmp_path / "deltas").mkdir()
    (tmp_path / "deltas" / ("0" * 64)).touch()
    with pytest.raises(ConfigError, match="has blobs of its own, deltas/0000") as raised:
        keep_bucket(tmp_path, "s3://bucket/x")
    assert raised.value.hint is not None
    assert "copy blobs and deltas below s3://bucket/x" in raised.value.hint


def test_a_clock_that_is_too_far_off_is_named() -> None:
    """S3 refuses what is signed at another time than its own."""

    class Skewed(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            body = b"<Error><Code>RequestTimeTooSkewed</Code><Message>The difference is too large.</Message></Error>"
            self.send_response(403)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Skewed)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        settings = AwsSettings("eu-central-1", f"http://127.0.0.1:{server.server_port}", KEY, SECRET)
        with pytest.raises(StorageError, match="RequestTimeTooSkewed: The difference") as raised:
            Bucket("s3://bucket/x", settings, sleep=never).check()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert raised.value.hint is not None
    assert "clock" in raised.value.hint
