"""What can be asked of the ledger about what operators did."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import func, select

from server.storage.asking import records, tuples
from server.storage.audit_records import DONE, AuditRecord
from server.storage.audit_writes import one_line
from server.storage.tables import AUDIT

if TYPE_CHECKING:
    from server.storage.ledger import Ledger


def audit_of(
    ledger: Ledger,
    most: int = 100,
    *,
    before: int | None = None,
    since: str | None = None,
    subject: str | None = None,
) -> list[AuditRecord]:
    """Return what operators asked for, the newest first.

    Args:
        ledger: the ledger.
        most: entries.
        before: only entries with a smaller number; None: from the newest on.
        since: only entries of this time or later, as the ledger writes it (UTC); None: all.
        subject: only entries of this job, device or rollout; None: all.
    """
    query = select(AUDIT).order_by(AUDIT.c.id.desc()).limit(most)
    if before is not None:
        query = query.where(AUDIT.c.id < before)
    if since is not None:
        query = query.where(AUDIT.c.at >= since)
    if subject is not None:
        query = query.where(AUDIT.c.subject == one_line(subject))
    return records(ledger, AuditRecord, query)


def newest_entry(ledger: Ledger) -> int:
    """Return the number of the newest entry; 0: there is none."""
    ((number,),) = tuples(ledger, tuple[int | None], select(func.max(AUDIT.c.id)))
    return number or 0


def last_change(ledger: Ledger, subject: str, number: int) -> AuditRecord | None:
    """Return what was done last to a job, device or rollout after an entry's number; None: nothing was."""
    here = (AUDIT.c.subject == one_line(subject), AUDIT.c.id > number, AUDIT.c.outcome == DONE)
    found = records(ledger, AuditRecord, select(AUDIT).where(*here).order_by(AUDIT.c.id.desc()).limit(1))
    return found[0] if found else None
