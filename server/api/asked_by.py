"""Who asks: what Litestar gives to each handler that has a parameter ``asker: AskedBy``."""

from __future__ import annotations

from typing import Any, TypeAlias

from litestar import Request  # noqa: TC002 Litestar reads the type of what it calls
from litestar.di import NamedDependency, Provide

from server.access.gate import ASKER
from server.storage.audit_records import Asker

AskedBy: TypeAlias = NamedDependency[Asker]


def asker_of(request: Request[Any, Any, Any]) -> Asker:
    """Return who asks: the gate has entered it."""
    asker: Asker = request.scope[ASKER]  # type: ignore[literal-required]
    return asker


def asker_dependencies() -> dict[str, Provide]:
    """What an application needs so that its handlers get who asks."""
    return {"asker": Provide(asker_of, sync_to_thread=False)}
