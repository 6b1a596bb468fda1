"""What a job's coordinator uses beside ledger and adapters: the broker, uploads, the evaluator, the clock."""

from __future__ import annotations

import contextlib
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from edge_runtime.network.transport import Transport
    from server.evaluation import Evaluator
    from server.web.uploads import Uploads


def _random_epoch() -> str:
    return secrets.token_hex(8)


@dataclass(frozen=True)
class Services:
    """What a job's coordinator uses of the outside world.

    Attributes:
        transport: the server's connection to the broker.
        uploads: the deltas that devices may send.
        evaluator: evaluates adapters on the held-out rows.
        clock: returns monotonic seconds.
        blob_url: where devices fetch blobs; plans carry it.
        blob_mirror: a cache of the blobs that devices ask first; None: there is none.
        together: in its block, writes of the ledger wait for the disk once, at the end, and what is published waits
            for that too (held.py).
        new_epoch: returns a text that was never returned before; see presence.Hello.
    """

    transport: Transport
    uploads: Uploads
    evaluator: Evaluator
    clock: Callable[[], float]
    blob_url: str
    blob_mirror: str | None = None
    together: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext
    new_epoch: Callable[[], str] = _random_epoch
