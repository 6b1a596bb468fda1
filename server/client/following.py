"""Follows a job's events through lost connections and restarts of the server, each event once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from server.client.client import NoServerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from server.client.client import Client

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 10.0
"""Seconds between two attempts to reach a server that is away; they double from the first to the longest."""


def follow(
    client: Client,
    job: str,
    patience_s: float,
    clock: Callable[[], float],
    wait: Callable[[float], None],
    connected: Callable[[dict[str, Any]], None],
    away: Callable[[str], None],
) -> Iterator[dict[str, Any]]:
    """Yield a job's events until one says ``ended``.

    A server's events have numbers that grow across its restarts, so that none comes twice; those that a server had not
    handed out when it was killed are in its ledger, which ``connected`` is given anew.

    Args:
        client: reaches the server.
        job: name of the job.
        patience_s: seconds that a server may be away before the following ends.
        clock: returns monotonic seconds.
        wait: waits for so many seconds.
        connected: is given what ``GET /jobs/JOB/history`` answers, at first and after every absence.
        away: is given the cause when the server is away; once for each absence.

    Raises:
        NoServerError: no server answers at first, or it was away for too long.
        CoveyError: the server refuses it, such as a job that was deleted meanwhile.
    """
    after, pause_s = 0, _FIRST_PAUSE_S
    connected(client.get(f"/jobs/{job}/history"))
    lost_at: float | None = None
    while True:
        cause = "it ended its answer"
        try:
            if lost_at is not None:
                connected(client.get(f"/jobs/{job}/history"))
                lost_at, pause_s = None, _FIRST_PAUSE_S
            for number, event in client.events(job, after):
                after = after if number is None else number
                yield event
                if event["event"] == "ended":
                    return
        except NoServerError as error:
            if lost_at is not None and clock() - lost_at > patience_s:
                raise
            cause = str(error)
        if lost_at is None:
            lost_at = clock()
            away(cause)
        wait(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
