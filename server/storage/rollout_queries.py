"""What can be asked of the ledger about rollouts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from server.storage.asking import records
from server.storage.tables import ROLLOUTS

if TYPE_CHECKING:
    from server.storage.ledger import Ledger


@dataclass(frozen=True)
class RolloutRecord:
    """One rollout.

    Attributes:
        id: its number, ascending over all fleets of the ledger.
        source: where what is rolled out lies on the server.
        state: the state in the document.
        document: the whole rollout, as rollouts.rollout has it.
    """

    id: int
    fleet: str
    source: str
    created_at: str
    ended_at: str | None
    state: str
    document: dict[str, Any]


def rollouts_of(ledger: Ledger, fleet: str) -> list[RolloutRecord]:
    """Return a fleet's rollouts, the oldest first."""
    query = select(ROLLOUTS).where(ROLLOUTS.c.fleet == fleet).order_by(ROLLOUTS.c.id)
    return records(ledger, RolloutRecord, query, json={"document": dict[str, Any]})
