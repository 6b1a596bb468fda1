"""What a session asks its process's training for: a round, or an adapter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_runtime.errors import CoveyError
from edge_runtime.protocol.reports import RoundReport, Synced

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.protocol.plans import SyncPlan, TrainPlan

Answer = RoundReport | Synced | CoveyError | None
"""What came of it: a report, the proof of an adapter, an error; None: it was not wanted any more."""


@dataclass(frozen=True)
class Asked:
    """What a session is asked for.

    Attributes:
        plan: a round to train, or an adapter to take over.
        device: the session's device.
        blob_url: where the adapter is.
        goes_on: whether it is still wanted; asked before the round and after each step.
    """

    plan: TrainPlan | SyncPlan
    device: str
    blob_url: str
    goes_on: Callable[[], bool]
