"""Rollouts as commands and the API show them, read from the ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from edge_runtime.errors import StorageError, wall
from server.errors import RolloutError
from server.rollouts.rollout import Rollout
from server.storage.registry_queries import fleets_of
from server.storage.rollout_queries import rollouts_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from server.storage.ledger import Ledger
    from server.storage.rollout_queries import RolloutRecord


def rollout_of(record: RolloutRecord) -> Rollout:
    """Return the rollout of a record.

    Raises:
        StorageError: another version of Covey wrote it, or it is damaged.
    """
    with wall(
        lambda cause: StorageError(
            f"rollout {record.id} in the ledger was written by another version of Covey, or is damaged: {cause}",
            "restore the ledger from a backup, or use the Covey that wrote it",
        )
    ):
        return msgspec.convert(record.document, Rollout)


def described(record: RolloutRecord) -> dict[str, Any]:
    """Return a rollout as commands and the API show it: its figures, and each device by group."""
    rollout = rollout_of(record)
    states = [entry.state for entry in rollout.devices.values()]
    groups = [
        {
            "group": index + 1,
            "devices": [
                {"device": name, "state": rollout.devices[name].state, "reason": rollout.devices[name].reason}
                for name in group
            ],
        }
        for index, group in enumerate(rollout.groups)
    ]
    return {
        "rollout": record.id,
        "kind": rollout.kind,
        "sha256": rollout.sha256,
        "bundle_sha256": rollout.bundle_sha256,
        "source": record.source,
        "state": rollout.state,
        "reason": rollout.reason,
        "group": rollout.group + 1,
        "groups": len(rollout.groups),
        "error_threshold": rollout.error_threshold,
        "soak_s": rollout.soak_s,
        "soaks_until_s": rollout.soaks_until_s,
        "approve": rollout.approve,
        "devices": len(states),
        "switched": states.count("switched"),
        "failed": states.count("failed"),
        "created_at": record.created_at,
        "ended_at": record.ended_at,
        "group_list": groups,
    }


def rollout_list(ledger: Ledger, fleet: str | None = None) -> list[dict[str, Any]]:
    """Return the rollouts of a fleet, the oldest first; None: of the only fleet of the ledger's devices."""
    fleets = [fleet] if fleet is not None else fleets_of(ledger)
    return [described(record) for name in fleets for record in rollouts_of(ledger, name)]


def one_rollout(rollouts: Sequence[dict[str, Any]], number: int) -> dict[str, Any]:
    """Return the rollout of a number.

    Raises:
        RolloutError: there is none.
    """
    for found in rollouts:
        if found["rollout"] == number:
            return found
    raise RolloutError(f"there is no rollout {number}", "see: covey rollout list")
