"""Objects in an S3-compatible bucket, through obstore: a bucket that was away comes back, and nothing is written twice.

An object appears whole or not at all. Every action here can be done again, so one that failed for want of a connection
is tried until the bucket answers.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import logging
import os
import re
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from edge_runtime.errors import StorageError, storage_error, without_user
from server.errors import BlobsAwayError
from server.storage.aws_settings import aws_settings
from server.storage.blob_address import bucket_and_prefix, bucket_beside
from server.storage.postgres_database import LOST_S

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from server.storage.aws_settings import AwsSettings

_LOG = logging.getLogger(__name__)
T = TypeVar("T")
_CHUNK_BYTES = 8 << 20
"""Bytes that one request fetches: each has its own time limit."""
_CONNECT_S, _ANSWER_S, _TRIED_S = 5, 60, 10
_SHORT_ANSWER_S = 15
"""Seconds that a request without content may take."""
MOST_AT_ONCE = 1000
"""Objects that S3 removes by one request (DeleteObjects)."""
AT_ONCE_S = 0.0
"""The limit of who does not wait for a bucket that is away."""
_AGAIN_S = 1.0
START_S = 30.0
"""Seconds for which a server waits at its start for a bucket or a database, or for one that ended to be gone there."""
_TEMPORARY_CODES = ("SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "OperationAborted")
_NO_BUCKET = "NoSuchBucket"


class Bucket:
    """A bucket's objects below one prefix. Safe to use from several threads.

    Args:
        address: ``s3://bucket/prefix``.
        settings: how it is reached.
        sleep: waits; gets seconds. May raise to end the waiting.
        clock: seconds of a monotonic clock.

    Raises:
        StorageError: obstore is not installed, or does not take the settings.
    """

    def __init__(
        self,
        address: str,
        settings: AwsSettings,
        *,
        sleep: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        bucket, prefix = bucket_and_prefix(address)
        self.place = f"s3://{bucket}/{prefix}".rstrip("/")
        self._sleep, self._clock = sleep, clock
        try:
            import obstore  # noqa: PLC0415 an extra
            from obstore.store import S3Store  # noqa: PLC0415 an extra
        except ImportError as error:
            raise StorageError(
                f"the blobs {self.place} need obstore, which is not installed", "pip install 'covey[s3]'"
            ) from error
        keys = {
            name: value
            for name in ("endpoint", "access_key_id", "secret_access_key", "session_token")
            if (value := getattr(settings, name)) is not None
        }
        self._obstore = obstore

        def store(answer_s: int) -> Any:  # noqa: ANN401 a class of an extra
            return S3Store(
                bucket,
                prefix=prefix or None,
                region=settings.region,
                client_options={
                    "allow_http": (settings.endpoint or "").startswith("http://"),
                    "connect_timeout": dt.timedelta(seconds=_CONNECT_S),
                    "timeout": dt.timedelta(seconds=answer_s),
                },
                retry_config={"max_retries": 2, "retry_timeout": dt.timedelta(seconds=_TRIED_S)},
                **keys,
            )

        try:
            self._store, self._quick = store(_ANSWER_S), store(_SHORT_ANSWER_S)
        except (obstore.exceptions.BaseError, ValueError) as error:
            raise self._failed("use", error) from error

    def check(self) -> None:
        """Write, read, list and remove a probe; wait where the bucket does not answer.

        Raises:
            StorageError: it does not answer, is not there, or one of this is not allowed.
        """
        key = f"probe-{uuid.uuid4().hex}"
        self._again("write to", lambda: self._obstore.put(self._store, key, b"covey"), START_S)
        try:
            self._again("read", lambda: self._obstore.get(self._store, key).bytes(), START_S)
            self._again("list", lambda: self._obstore.list(self._store, prefix="probe-").collect(), START_S)
        finally:
            self._again("delete from", lambda: self._obstore.delete(self._store, key), START_S)

    def put(self, key: str, data: bytes | Path, limit_s: float = LOST_S) -> None:
        """Write an object; an older one is replaced. When this returns, it is there and whole.

        Args:
            key: its name below the prefix.
            data: its content, or the file that has it.
            limit_s: seconds to wait for a bucket that is away.

        Raises:
            BlobsAwayError: the bucket stays away.
            StorageError: it refuses it, or the file cannot be read.
        """
        try:
            self._again("write to", lambda: self._obstore.put(self._store, key, data), limit_s)
        except OSError as error:  # of the file
            raise storage_error(error, data if isinstance(data, Path) else key) from error

    def fetch(self, key: str, target: Path, limit_s: float = LOST_S) -> str | None:
        """Write an object's content to a file, synced; return its sha256, in hex. None: there is no such object.

        Args:
            key: its name below the prefix.
            target: the file.
            limit_s: seconds to wait for a bucket that is away, with each part.

        Raises:
            BlobsAwayError: the bucket stays away.
            StorageError: it refuses it, or the file cannot be written.
        """
        digest, is_whole = hashlib.sha256(), False
        try:
            size = self._again("read", lambda: self._obstore.head(self._quick, key), limit_s)["size"]
            with target.open("wb") as file:
                for start in range(0, size, _CHUNK_BYTES):
                    end = min(start + _CHUNK_BYTES, size)
                    part = self._again("read", lambda: self._part(key, start, end), limit_s)  # noqa: B023 called at once
                    digest.update(part)
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
            is_whole = True
        except FileNotFoundError:
            return None
        except OSError as error:
            raise storage_error(error, target) from error
        finally:
            if not is_whole:
                with contextlib.suppress(OSError):  # the first error is the one that says what is wrong
                    target.unlink(missing_ok=True)
        return digest.hexdigest()

    def _part(self, key: str, start: int, end: int) -> bytes:
        return bytes(self._obstore.get_range(self._store, key, start=start, end=end))

    def has(self, key: str) -> bool:
        """Whether there is such an object.

        Raises:
            StorageError: the bucket stays away or refuses to say.
        """
        try:
            self._again("read", lambda: self._obstore.head(self._quick, key))
        except FileNotFoundError:
            return False
        return True

    def names(self, folder: str) -> set[str]:
        """Return the names of the objects of a folder, without those of folders in it.

        Raises:
            StorageError: the bucket stays away or refuses to say.
        """
        found = self._again("list", lambda: self._obstore.list_with_delimiter(self._store, prefix=folder))
        return {entry["path"].rpartition("/")[2] for entry in found["objects"]}

    def rename(self, key: str, to: str) -> None:
        """Give an object another name.

        Raises:
            StorageError: the bucket stays away or refuses it.
        """
        with contextlib.suppress(FileNotFoundError):  # a first attempt may have done it without an answer
            self._again("write to", lambda: self._obstore.rename(self._store, key, to))

    def try_to_remove(self, keys: Sequence[str]) -> bool:
        """Remove objects by one request, if the bucket answers at once; return whether they are gone.

        Args:
            keys: at most MOST_AT_ONCE names below the prefix; one that is not there is gone.
        """
        try:
            self._again("delete from", lambda: self._obstore.delete(self._quick, list(keys)), AT_ONCE_S)
        except FileNotFoundError:
            return True
        except StorageError as error:
            _LOG.warning("%d objects are not removed yet, %s first: %s", len(keys), keys[0], error)
            return False
        return True

    def _again(self, verb: str, act: Callable[[], T], limit_s: float = LOST_S) -> T:
        """Do something, and again for as long as the bucket is away; FileNotFoundError: there is no such object."""
        began: float | None = None
        while True:
            try:
                return self._answered(verb, act, has_waited=began is not None)
            except self._obstore.exceptions.BaseError as error:
                problem = self._failed(verb, error)
                now = self._clock()
                if not self._is_away(error) or now - (now if began is None else began) >= limit_s:
                    raise problem from error
                if began is None:
                    began = now
                    _LOG.warning("waiting: %s", problem.what)
                self._sleep(_AGAIN_S)

    def _answered(self, verb: str, act: Callable[[], T], *, has_waited: bool) -> T:
        try:
            found = act()
        except FileNotFoundError as error:
            if _NO_BUCKET in str(error):
                raise self._failed(verb, error) from error
            if has_waited:
                _LOG.warning("the blobs %s are back", self.place)
            raise
        if has_waited:
            _LOG.warning("the blobs %s are back", self.place)
        return found

    def _is_away(self, error: Exception) -> bool:
        """Whether an error may end by itself: no answer, or one that says that the service has a trouble."""
        refused = self._obstore.exceptions.PermissionDeniedError, self._obstore.exceptions.UnauthenticatedError
        if isinstance(error, refused):
            return False
        status, code = _status_of(error), _code_of(error)
        if code is not None and status is None:  # it has answered, and says of which object it is
            return code in _TEMPORARY_CODES
        return status is None or status >= 500 or status == 429 or code in _TEMPORARY_CODES

    def _failed(self, verb: str, error: Exception) -> StorageError:
        """Return the error of an action; only what the service has said is in it, and no setting."""
        code, status = _code_of(error), _status_of(error)
        what = f"cannot {verb} the blobs {self.place}: {without_user(_said(error))}"
        if code == _NO_BUCKET:
            return StorageError(what, "make the bucket, or correct --blobs, AWS_REGION and AWS_ENDPOINT_URL")
        if code == "RequestTimeTooSkewed":
            return StorageError(what, "set this machine's clock (timedatectl); nothing was lost")
        if status in (401, 403) or code == "AccessDenied":
            return StorageError(
                what, "the keys need GetObject, PutObject, DeleteObject and ListBucket there; see docs/operating.md"
            )
        kind = BlobsAwayError if self._is_away(error) else StorageError
        return kind(what, "check AWS_ENDPOINT_URL, and that the service runs and has space; nothing was lost")


def bucket_of(state_dir: Path, sleep: Callable[[float], object] = time.sleep) -> Bucket | None:
    """Return the bucket that has a state directory's blobs; None: they are in folders there.

    Args:
        state_dir: the server's state directory.
        sleep: see Bucket.

    Raises:
        ConfigError: the bucket's settings are none.
        StorageError: see Bucket; or the note of its address cannot be read.
    """
    address = bucket_beside(state_dir)
    return None if address is None else Bucket(address, aws_settings(os.environ, Path.home()), sleep=sleep)


def _status_of(error: Exception) -> int | None:
    found = re.search(r"status code: (\d{3})", str(error))
    return None if found is None else int(found[1])


def _code_of(error: Exception) -> str | None:
    found = re.search(r"<Code>([A-Za-z0-9]+)</Code>|\(code: ([A-Za-z0-9]+)\)", str(error))
    return None if found is None else found[1] or found[2]


def _said(error: Exception) -> str:
    """Return what went wrong in a few words: the service's own, or the first line of the client's."""
    text, code, status = str(error), _code_of(error), _status_of(error)
    said = re.search(r"<Message>([^<]*)</Message>", text)
    if code is not None:
        return f"{code}: {said[1]}" if said is not None else code
    if status is not None:
        return f"it answers with status {status}"
    first = " ".join(text.partition("\n")[0].split())
    sent = re.search(r"Error performing [A-Z]+ (\S+://[^/\s]+)\S* .* - (.*)", first)
    return first if sent is None else f"no answer from {sent[1]} ({sent[2]})"
