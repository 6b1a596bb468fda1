"""The audit as commands, API and pages show it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from server.storage.audit_queries import audit_of

if TYPE_CHECKING:
    from server.storage.ledger import Ledger

LARGEST_PAGE = 1000


def audit_page(ledger: Ledger, most: int, before: int | None = None, since: str | None = None) -> dict[str, Any]:
    """Return a page of the audit, the newest entry first.

    Args:
        ledger: the ledger.
        most: entries of a page.
        before: only entries with a smaller number; None: from the newest on.
        since: only entries of this time or later (UTC, as the ledger writes it); None: all.
    """
    found = audit_of(ledger, most + 1, before=before, since=since)
    page = [asdict(entry) for entry in found[:most]]
    return {"entries": page, "next_before": page[-1]["id"] if len(found) > most else None}
