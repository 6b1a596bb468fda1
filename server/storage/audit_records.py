"""Who asks for a change, and what the ledger keeps of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Way = Literal["socket", "token", "browser", "proxy"]
"""``socket``: of the state directory; ``token``: over TCP, without a browser; ``browser``: with a session; ``proxy``: a
trusted proxy says who it is."""
DONE = "done"


@dataclass(frozen=True)
class Asker:
    """Who asks for a change.

    Attributes:
        name: of the operator; ``local`` over the socket, ``api-token`` where operators have no names.
        way: over which way.
        address: from which address; None: over the socket.
        seen: number of the newest entry that the operator had seen; where somebody has changed the same thing since,
            nothing is done. None: whatever it is now, it is to be changed.
    """

    name: str
    way: Way
    address: str | None = None
    seen: int | None = None


@dataclass(frozen=True)
class AuditRecord:
    """One entry: a change that an operator asked for.

    Attributes:
        id: its number, ascending.
        at: when it was asked for: UTC, as text.
        actor: the operator's name.
        action: the operation.
        subject: the job, the device or the rollout.
        detail: what else belongs to it.
        way: see Way.
        address: from where; None: over the socket, or not known.
        outcome: ``done``, ``refused: …`` or ``failed: …``; None: at work, or the server ended before it was known.
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
