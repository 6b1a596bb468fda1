"""The ledger's rollouts: writes, and what can be asked about them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import insert, select, update

from server.storage.asking import records
from server.storage.tables import ROLLOUTS, now_text
from server.storage.writes import Writes

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


class RolloutWrites(Writes):
    """The ledger's writes about rollouts."""

    def rollout_entered(self, fleet: str, source: str, state: str, document: str) -> None:
        """Enter a new rollout; ``document`` is JSON."""
        row = {"fleet": fleet, "source": source, "state": state, "document": document, "created_at": now_text()}
        self.database.write(insert(ROLLOUTS), row)

    def rollout_changed(self, number: int, state: str, document: str, *, has_ended: bool) -> None:
        """Enter what a rollout is now."""
        values = {"state": state, "document": document, "ended_at": now_text() if has_ended else None}
        self.database.write(update(ROLLOUTS).where(ROLLOUTS.c.id == number).values(**values))


def rollouts_of(ledger: Ledger, fleet: str) -> list[RolloutRecord]:
    """Return a fleet's rollouts, the oldest first."""
    query = select(ROLLOUTS).where(ROLLOUTS.c.fleet == fleet).order_by(ROLLOUTS.c.id)
    return records(ledger, RolloutRecord, query, json={"document": dict[str, Any]})
