"""The order of plans: which waiting plan makes the plan at work pointless."""

from __future__ import annotations

from edge_runtime.errors import ProtocolError
from edge_runtime.protocol.messages import Plan, SyncPlan, decode_message


def supersedes(payload: bytes, plan: Plan) -> bool:
    """Whether a waiting plan makes this one pointless: another job, a later round or attempt."""
    try:
        other: Plan = decode_message(payload, Plan)  # type: ignore[arg-type]
    except ProtocolError:
        return False  # it is reported when its turn comes
    if other.job != plan.job:
        return True
    return _order(other) > _order(plan)


def _order(plan: Plan) -> tuple[int, int]:
    return plan.round, 0 if isinstance(plan, SyncPlan) else plan.attempt
