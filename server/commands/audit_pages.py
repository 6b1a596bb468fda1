"""The audit, page by page, from a running server or from the ledger."""

from __future__ import annotations

import datetime as dt
import re
from typing import TYPE_CHECKING, Any

from edge_runtime.errors import ConfigError
from server.commands.reaching import look
from server.storage.audit_writes import ENTRIES_KEPT
from server.storage.tables import time_text
from server.trust.tokens import duration_s
from server.views.audit import LARGEST_PAGE, audit_page

if TYPE_CHECKING:
    import argparse


def audit_entries(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the newest entries that a command asks for, the oldest of them first.

    Raises:
        ConfigError: ``--lines`` or ``--since`` cannot be used.
        CoveyError: the server refuses it, or there is no ledger.
    """
    if not 1 <= args.lines <= ENTRIES_KEPT:
        raise ConfigError(f"--lines {args.lines} is not between 1 and {ENTRIES_KEPT}", "so many are kept")
    since = None if args.since is None else _since_text(args.since)
    found: list[dict[str, Any]] = []
    before: int | None = None
    while len(found) < args.lines:
        most = min(LARGEST_PAGE, args.lines - len(found))
        query = {"most": most, "before": before, "since": since}
        page = look(
            args,
            "/audit",
            lambda ledger, most=most, before=before: audit_page(ledger, most, before, since),  # type: ignore[misc]
            **{key: value for key, value in query.items() if value is not None},
        )
        found += page["entries"]
        before = page["next_before"]
        if before is None:
            break
    return found[::-1]


def _since_text(text: str) -> str:
    """Return a time as the ledger writes it."""
    if re.match(r"\d{4}-", text):
        try:
            return time_text(dt.datetime.fromisoformat(text))
        except ValueError as error:
            raise ConfigError(f"--since {text}: {error}", "as 2026-11-28, or 2026-11-28 12:00:00 in quotes") from error
    return time_text(dt.datetime.now(dt.timezone.utc) - dt.timedelta(seconds=duration_s(text)))
