"""The ledger's writes about rollouts."""

from __future__ import annotations

from sqlalchemy import insert, update

from server.storage.tables import ROLLOUTS
from server.storage.writes import Writes


class RolloutWrites(Writes):
    """See the file's first line."""

    def rollout_entered(self, fleet: str, source: str, state: str, document: str) -> None:
        """Enter a new rollout; ``document`` is JSON."""
        row = {
            "fleet": fleet,
            "source": source,
            "state": state,
            "document": document,
            "created_at": self.database.now_text(),
        }
        self.database.write(insert(ROLLOUTS), row)

    def rollout_changed(self, number: int, state: str, document: str, *, has_ended: bool) -> None:
        """Enter what a rollout is now."""
        values = {"state": state, "document": document, "ended_at": self.database.now_text() if has_ended else None}
        self.database.write(update(ROLLOUTS).where(ROLLOUTS.c.id == number).values(**values))
