"""Fetches blobs by sha256 over HTTP: resumable and checked; a file appears only when it is whole."""

from __future__ import annotations

import hashlib
import http.client
import logging
import time
from typing import TYPE_CHECKING

from edge_runtime.errors import ConfigError, NetworkError, storage_error
from edge_runtime.files.aside import set_aside
from edge_runtime.files.hashing import file_sha256
from edge_runtime.network.cause import words_of
from edge_runtime.network.http_address import bracketed, check_http_url
from edge_runtime.network.https import AnswerError, BrokenTransferError, Https

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_runtime.network.address import TlsFiles
    from edge_runtime.network.mirror import Mirror

_LOG = logging.getLogger(__name__)
_CHUNK_BYTES = 1 << 18
_ATTEMPTS = 6
_BYTES_TO_MEASURE = 1 << 16
_LONGEST_WAIT_S = 300.0
"""Seconds that a server which asks for it is waited for in all: as long as it waits for a bucket or a database."""
_SHORTEST_WAIT_S = 1.0


class Fetcher:
    """Fetches blobs from one server.

    Args:
        blob_url: blobs are at ``<blob_url>/<sha256>``.
        sleep: waits between attempts, in seconds; passed in for tests.
        clock: monotonic seconds.
        tls: this member's TLS files; an https server may be signed by their authority, or by one of the system's.
        mirror: is asked for a blob first, once; whatever it does wrong, the server is asked. None: there is none.

    Raises:
        ConfigError: the TLS files cannot be used.

    Attributes:
        fetched_bytes: bytes received over the network so far.
    """

    def __init__(
        self,
        blob_url: str,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        *,
        tls: TlsFiles | None = None,
        mirror: Mirror | None = None,
    ) -> None:
        self._mirror = mirror
        self._blob_url = blob_url.rstrip("/")
        self._https = Https(self._blob_url, tls, clock=clock)
        self._sleep = sleep
        self._clock = clock
        self._seconds = 0.0
        self._measured_bytes = 0
        self.fetched_bytes = 0

    @property
    def bytes_per_s(self) -> float | None:
        """Speed of the downloads, connecting included; None before enough bytes came to tell."""
        if self._measured_bytes < _BYTES_TO_MEASURE or self._seconds <= 0:
            return None
        return self._measured_bytes / self._seconds

    def data(self, sha256: str, max_bytes: int) -> bytes:
        """Return a small blob.

        Raises:
            NetworkError: it could not be fetched, is larger than ``max_bytes``, or has another hash.
        """
        chunks: list[bytes] = []

        def attempt(source: Https) -> None:
            chunks.clear()
            received = 0
            with _open(source, sha256, 0) as response:
                while chunk := _read(response):
                    received += len(chunk)
                    self.fetched_bytes += len(chunk)
                    if received > max_bytes:
                        raise NetworkError(
                            f"blob {sha256[:12]} is larger than {max_bytes} bytes", "read the server's log"
                        )
                    chunks.append(chunk)
            if hashlib.sha256(b"".join(chunks)).hexdigest() != sha256:
                raise BrokenTransferError(f"blob {sha256[:12]} arrived with another hash")

        self._retry(attempt, sha256)
        return b"".join(chunks)

    def beside(self, resource: str, max_bytes: int) -> bytes | None:
        """Return a small resource that is named otherwise, such as a release; None: covey serve has none.

        Args:
            resource: its path below the address of the blobs, with the leading slash.
            max_bytes: the most that it may have.

        Raises:
            NetworkError: it could not be fetched, or is larger; or something that is not covey serve answers.
        """
        found: list[bytes] = []

        def attempt() -> None:
            try:
                response = self._https.open("GET", resource)
            except AnswerError as error:
                if error.is_own:
                    return
                raise
            with response:
                data = _read_at_most(response, max_bytes)
            self.fetched_bytes += len(data)
            if len(data) > max_bytes:
                raise NetworkError(f"{resource} of the server is larger than {max_bytes} bytes", "read its log")
            found.append(data)

        try_again(attempt, self._sleep, f"fetch {self._blob_url}{resource}")
        return found[0] if found else None

    def file(self, sha256: str, size_bytes: int, path: Path) -> None:
        """Fetch a blob to a file; an interrupted transfer continues where it stopped, also after a restart.

        Raises:
            NetworkError: it could not be fetched, or what came has another hash.
            StorageError: the disk is full or not writable; fetched bytes stay for the next attempt.
        """
        partial = path.with_name(path.name + ".part")

        def attempt(source: Https) -> None:
            if not partial.exists() or partial.stat().st_size < size_bytes:
                self._append(source, sha256, size_bytes, partial)
            if partial.stat().st_size != size_bytes or file_sha256(partial) != sha256:
                if partial.stat().st_size >= size_bytes:
                    partial.unlink()
                raise BrokenTransferError(f"blob {sha256[:12]} arrived incomplete or with another hash")

        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            for place in (partial, path):
                if place.is_dir():
                    set_aside(place, f"{place} is a folder, and a file is to be there")
            self._retry(attempt, sha256)
            partial.replace(path)
        except OSError as error:
            raise storage_error(error, path) from error

    def _append(self, source: Https, sha256: str, size_bytes: int, partial: Path) -> None:
        have = partial.stat().st_size if partial.exists() else 0
        with _open(source, sha256, have) as response, partial.open("ab") as file:
            if have and response.status != http.client.PARTIAL_CONTENT:
                file.truncate(0)
                have = 0
            while chunk := _read(response):
                file.write(chunk)
                have += len(chunk)
                self.fetched_bytes += len(chunk)
                if have > size_bytes:
                    return  # it would go on for ever; the caller throws it away

    def _retry(self, attempt: Callable[[Https], None], sha256: str) -> None:
        def timed(source: Https) -> None:
            before, started = self.fetched_bytes, self._clock()
            attempt(source)
            self._seconds += self._clock() - started
            self._measured_bytes += self.fetched_bytes - before

        if self._mirror is not None:
            try:
                timed(self._mirror.https)
            except (BrokenTransferError, NetworkError) as error:
                self._mirror.failed(sha256, str(error))
                self._mirror = None
            else:
                return
        try_again(lambda: timed(self._https), self._sleep, f"fetch {self._blob_url}/{sha256[:12]}…")


def _open(source: Https, sha256: str, start: int) -> http.client.HTTPResponse:
    headers = {"Range": f"bytes={start}-"} if start else {}
    return source.open("GET", f"/{sha256}", headers)


def try_again(attempt: Callable[[], None], sleep: Callable[[float], None], what: str) -> None:
    """Try a transfer until it succeeds, with growing pauses.

    A server that says when to come again (``Retry-After``) is asked then, and such an attempt does not count.

    Args:
        attempt: raises BrokenTransferError where another try may help.
        sleep: waits, in seconds.
        what: what is tried, for messages: a verb and its object.

    Raises:
        NetworkError: no attempt succeeded.
    """
    failed, waited_s = 0, 0.0
    while True:
        try:
            attempt()
        except BrokenTransferError as error:
            if error.again_after_s is not None and waited_s < _LONGEST_WAIT_S:
                pause_s = max(error.again_after_s, _SHORTEST_WAIT_S)
                waited_s += pause_s
            else:
                failed += 1
                if failed == _ATTEMPTS:
                    raise NetworkError(f"cannot {what}: {error}", error.remedy) from error
                pause_s = 2.0**failed / 4
            _LOG.warning("cannot %s yet (%s); trying again", what, error)
            sleep(pause_s)
        else:
            return


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(_CHUNK_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise BrokenTransferError(words_of(error)) from error


def _read_at_most(response: http.client.HTTPResponse, max_bytes: int) -> bytes:
    """Return a body, or a byte more than its limit of one that is larger."""
    data = b""
    while len(data) <= max_bytes and (chunk := _read(response)):
        data += chunk
    if (response.length or 0) > 0 and len(data) <= max_bytes:
        raise BrokenTransferError("the answer broke off")
    return data[: max_bytes + 1]


def blob_base(blob_url: str, broker_host: str, server_url: str | None) -> str:
    """Return where blobs are: under the device's own ``server_url``, or where the plan said.

    A plan's address without a host (``http://:8080/blobs``) is on the broker's host.

    Raises:
        NetworkError: not an http or https address that requests can be sent to.
    """
    url = f"{server_url.rstrip('/')}/blobs" if server_url else blob_url
    try:
        url = check_http_url(url, may_lack_host=True)
    except ConfigError as error:
        raise NetworkError(error.what, "set server_url in edge.toml, or covey serve --public-url") from error
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{bracketed(broker_host)}{rest}" if rest.startswith((":", "/")) else url
