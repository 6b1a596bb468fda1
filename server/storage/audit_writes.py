"""The ledger's writes about what operators ask for: entered before it is done, and its outcome after."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import delete, func, insert, select, update

from server.storage.tables import AUDIT
from server.storage.writes import Writes

if TYPE_CHECKING:
    from server.storage.audit_records import Asker

ENTRIES_KEPT = 100_000
"""Entries of the audit that are kept; the oldest go first."""
_LONGEST_TEXT = 500


class AuditWrites(Writes):
    """See the file's first line."""

    def audit_begun(self, asker: Asker, action: str, subject: str, detail: str = "") -> int:
        """Enter what an operator asks for, and drop what is too old; return the entry's number.

        Args:
            asker: who asks.
            action: the operation.
            subject: the job, the device or the rollout.
            detail: what else belongs to it.
        """
        values = {
            "at": self.database.now_text(),
            "actor": one_line(asker.name),
            "action": action,
            "subject": one_line(subject),
            "detail": one_line(detail),
            "way": asker.way,
            "address": asker.address,
        }
        with self.database.transaction():
            self.database.write(insert(AUDIT), values)
            (row,) = self.database.rows(select(func.max(AUDIT.c.id).label("number")))
            number = int(row["number"])
            self.database.write(delete(AUDIT).where(AUDIT.c.id <= number - ENTRIES_KEPT))
        return number

    def audit_ended(self, number: int, outcome: str) -> None:
        """Enter what became of it."""
        self.database.write(update(AUDIT).where(AUDIT.c.id == number).values(outcome=one_line(outcome)))


def one_line(text: str) -> str:
    """Return a text in one line that a terminal can show, cut where it is long: it may come from anybody's request."""
    shown = text if text.isprintable() else "".join(each if each.isprintable() else _escaped(each) for each in text)
    return shown if len(shown) <= _LONGEST_TEXT else shown[: _LONGEST_TEXT - 1] + "…"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
