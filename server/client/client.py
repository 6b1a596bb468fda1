"""Asks a running server over its API. What the server refuses is raised as the error that the command ends with."""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING, Any, Self

import httpx

from edge_runtime.errors import ConfigError, CoveyError, NetworkError
from server.errors import error_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PREFIX = "/api/v1"
KEEP_ALIVE_S = 10.0
"""Seconds without an event after which the server writes a comment line, so that its reader knows that it is there."""
SILENCE_S = 3.5 * KEEP_ALIVE_S
"""Seconds without a byte after which the reader of events takes the connection for lost."""
_CONNECT_S = 10.0
_ANSWER_S = 120.0
"""Seconds that an answer may take: the server does what is asked between two steps of its jobs."""


class NoServerError(NetworkError):
    """No server answers."""


class Client:
    """A connection to a server's API. Close it, or use it as a context manager.

    Args:
        base: its address, ``http://host:port``; with a socket, of no meaning.
        socket_path: the socket of a server on this machine; None: over TCP.
        token: what a server on TCP asks for.
        silence_s: seconds without a byte after which events end.
    """

    def __init__(
        self,
        base: str = "http://covey",
        *,
        socket_path: Path | None = None,
        token: str | None = None,
        silence_s: float = SILENCE_S,
    ) -> None:
        self._silence_s = silence_s
        self._place = base if socket_path is None else str(socket_path)
        self._is_local = socket_path is not None
        transport = httpx.HTTPTransport(uds=None if socket_path is None else str(socket_path))
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        timeout = httpx.Timeout(_ANSWER_S, connect=_CONNECT_S)
        self._http = httpx.Client(base_url=base, transport=transport, headers=headers, timeout=timeout)

    def __enter__(self) -> Self:
        """Return the client."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self._http.close()

    def get(self, path: str, **query: str | int) -> dict[str, Any]:
        """Return what ``GET`` answers; see ask."""
        return self.ask("GET", path, query=query)

    def ask(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        query: dict[str, str | int] | None = None,
        more_s: float = 0.0,
    ) -> dict[str, Any]:
        """Send a request and return its answer.

        Args:
            method: GET, POST, PUT or DELETE.
            path: path after the API's prefix.
            body: is sent as JSON; None: nothing.
            query: the query's parameters.
            more_s: seconds that the answer may take beyond the usual time.

        Raises:
            NoServerError: no server answers.
            CoveyError: the server refuses it; its class is that of the server's error.
        """
        with self._reaching():
            timeout = httpx.Timeout(_ANSWER_S + more_s, connect=_CONNECT_S)
            response = self._http.request(method, PREFIX + path, json=body, params=query, timeout=timeout)
        if response.is_error:
            raise _refusal(response.status_code, response.content)
        answer: dict[str, Any] = response.json()
        return answer

    def metrics(self) -> str:
        """Return what Prometheus scrapes.

        Raises:
            NoServerError: no server answers.
            CoveyError: the server refuses it.
        """
        with self._reaching():
            response = self._http.get("/metrics")
        if response.is_error:
            raise _refusal(response.status_code, response.content)
        return response.text

    def events(self, job: str, after: int) -> Iterator[tuple[int | None, dict[str, Any]]]:
        """Yield a job's events with their numbers, until the job has ended; the event that says so has none.

        A server whose stream says that it is there is taken for lost when it says so no more. An older server never
        does: the silence of its stream means nothing, and only opens it again after the last event.

        Args:
            job: name of the job.
            after: events up to this number are left out; 0: from the oldest that the server has kept.

        Raises:
            NoServerError: no server answers, it has ended, or it falls silent for SILENCE_S after it has said that it
                is there.
            NoSuchJobError: there is no such job.
        """
        timeout = httpx.Timeout(_ANSWER_S, connect=_CONNECT_S, read=self._silence_s)
        path = f"{PREFIX}/jobs/{job}/events"
        says_it_is_there, is_again = False, True
        while is_again:
            is_again = False
            stream = self._http.stream("GET", path, params={"after": after}, timeout=timeout)
            with self._reaching(), stream as response:
                if response.is_error:
                    raise _refusal(response.status_code, response.read())
                number: int | None = None
                try:
                    for line in response.iter_lines():
                        if line.startswith("id: "):
                            after = number = int(line.removeprefix("id: "))
                        elif line.startswith("data: "):
                            event: dict[str, Any] = json.loads(line.removeprefix("data: "))
                            yield number, event
                        elif not line:
                            number = None
                        says_it_is_there = says_it_is_there or line.startswith(":")
                except httpx.ReadTimeout:
                    if says_it_is_there:
                        raise
                    is_again = True

    @contextlib.contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except httpx.ReadTimeout as error:
            what = f"nothing came from the server at {self._place} in time"
            raise NoServerError(what, "check the network between here and there; the server may be busy") from error
        except httpx.HTTPError as error:
            cause = str(error) or type(error).__name__
            hint = (
                "start it: covey serve; or give its --state-dir"
                if self._is_local
                else "check the address, and that the server was started with --api-port"
            )
            raise NoServerError(f"no server answers at {self._place}: {cause}", hint) from error


def _refusal(status: int, content: bytes) -> CoveyError:
    """Return the error of an answer that is none."""
    try:
        problem = json.loads(content)
        what, hint, code = str(problem["error"]), str(problem["hint"]), int(problem["exit_code"])
    except (ValueError, KeyError, TypeError):
        return NetworkError(f"the server answers {status}, and not as Covey's API does", "check the address")
    return error_of(code, what, hint)


def token_from(path: Path | None) -> str | None:
    """Return the token of ``--token-file``, else of ``COVEY_TOKEN``; None: there is none.

    Raises:
        ConfigError: the file cannot be read.
    """
    if path is None:
        return os.environ.get("COVEY_TOKEN") or None
    try:
        return path.read_text().strip()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", "check --token-file") from error
