"""What travels over the operator's API about the audit; see schema.py."""

from __future__ import annotations

import msgspec


class AuditEntry(msgspec.Struct, frozen=True):
    """A change that an operator asked for.

    Attributes:
        id: its number, ascending.
        at: when: UTC.
        actor: the operator's name; ``local``: over the socket, ``api-token``: operators have no names.
        action: the operation.
        subject: the job, the device, the rollout; of a sign-in, the operator.
        detail: what else belongs to it.
        way: ``socket``, ``token``, ``browser`` or ``proxy``.
        address: from where; null: over the socket, or not known.
        outcome: ``done``, ``refused: …`` or ``failed: …``; null: at work, or the server ended before it was known.
    """

    id: int
    at: str
    actor: str
    action: str
    subject: str
    detail: str
    way: str
    address: str | None
    outcome: str | None


class AuditPage(msgspec.Struct, frozen=True):
    """Some entries, the newest first.

    Attributes:
        entries: the entries.
        next_before: asks for the older ones; null: there are none.
    """

    entries: list[AuditEntry]
    next_before: int | None
