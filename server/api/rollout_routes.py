"""``/rollouts``: start, look at, pause, resume and abort rollouts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from litestar import get, post
from litestar.params import FromPath, JSONBody

from server.api.asked_by import AskedBy  # noqa: TC001 Litestar reads the handlers' types
from server.api.rollout_schema import RolloutChange, RolloutList, RolloutOrder, RolloutStatus
from server.queue.rollout_wish import Wanted

if TYPE_CHECKING:
    from litestar.handlers import HTTPRouteHandler

    from server.queue.operations import Operations


def rollout_routes(operations: Operations) -> list[HTTPRouteHandler]:
    """Return the routes.

    Args:
        operations: does what is asked.
    """
    rollouts = operations.rollouts

    @post("/rollouts", status_code=201, sync_to_thread=True)
    def start(data: JSONBody[RolloutOrder], asker: AskedBy) -> RolloutStatus:
        """Begin a rollout."""
        number = rollouts.start(Wanted(**msgspec.structs.asdict(data)), asker)
        return msgspec.convert(rollouts.show(number), RolloutStatus)

    @get("/rollouts", sync_to_thread=True)
    def all_rollouts() -> RolloutList:
        """List all rollouts."""
        return RolloutList([msgspec.convert(one, RolloutStatus) for one in rollouts.list()])

    @get("/rollouts/{number:int}", sync_to_thread=True)
    def show(number: FromPath[int]) -> RolloutStatus:
        """Show one rollout with its devices."""
        return msgspec.convert(rollouts.show(number), RolloutStatus)

    @post("/rollouts/{number:int}/pause", status_code=200, sync_to_thread=True)
    def pause(number: FromPath[int], asker: AskedBy) -> RolloutChange:
        """Ask no further device."""
        return RolloutChange(number, rollouts.pause(number, asker))

    @post("/rollouts/{number:int}/resume", status_code=200, sync_to_thread=True)
    def resume(number: FromPath[int], asker: AskedBy) -> RolloutChange:
        """Go on after a pause, or let the next group begin."""
        return RolloutChange(number, rollouts.resume(number, asker))

    @post("/rollouts/{number:int}/abort", status_code=200, sync_to_thread=True)
    def abort(number: FromPath[int], asker: AskedBy) -> RolloutChange:
        """Take it back from every device."""
        return RolloutChange(number, rollouts.abort(number, asker))

    return [start, all_rollouts, show, pause, resume, abort]
