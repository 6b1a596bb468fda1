"""``/devices``: look at, ask, tag and forget devices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from litestar import delete, get, post, put
from litestar.params import FromPath, FromQuery, JSONBody, QueryParameter

from edge_runtime.protocol.predictions import LONGEST_PATIENCE_S
from edge_runtime.protocol.side_messages import LONGEST_FOLLOW_S, MOST_LINES
from server.api.asked_by import AskedBy  # noqa: TC001 Litestar reads the handlers' types
from server.api.schema import DeviceList, DeviceLog, LogLineSeen
from server.storage.registry_queries import DeviceFilter, Standing
from server.views.device import device_shown
from server.views.registry import MOST_ON_A_PAGE, device_page

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from litestar.handlers import HTTPRouteHandler

    from server.queue.operations import Operations

Text = Annotated[str, QueryParameter(max_length=200)]
Limit = Annotated[int, QueryParameter(ge=1, le=MOST_ON_A_PAGE)]
Patience = Annotated[float, QueryParameter(gt=0, le=LONGEST_PATIENCE_S)]
Lines = Annotated[int, QueryParameter(ge=0, le=MOST_LINES)]
FollowSeconds = Annotated[float, QueryParameter(ge=0, le=LONGEST_FOLLOW_S)]


def device_routes(operations: Operations, refused: Callable[[], Mapping[str, int]]) -> list[HTTPRouteHandler]:
    """Return the routes.

    Args:
        operations: does what is asked.
        refused: returns how many messages were refused since the start, by ``DEVICE: REASON``.
    """
    return [*_looking(operations, refused), *_asking(operations), *_changing(operations)]


def _looking(operations: Operations, refused: Callable[[], Mapping[str, int]]) -> list[HTTPRouteHandler]:
    @get("/devices", sync_to_thread=True)
    def devices(  # wide: a parameter for each filter
        q: Text = "",
        in_state: Annotated[str, QueryParameter(name="state", max_length=200)] = "",
        tag: Text = "",
        board: Text = "",
        version: Text = "",
        standing: FromQuery[Standing] = "",
        after: Annotated[str, QueryParameter(max_length=200)] = "",
        limit: Limit = MOST_ON_A_PAGE,
    ) -> DeviceList:
        """List the devices that ever announced themselves, page by page: ask again with ``after`` = ``next``.

        ``q`` is part of the name, in any case; ``standing`` is free, ineligible, resting or quarantine.
        """
        wanted = DeviceFilter(q, in_state, tag, board, version, standing)
        return msgspec.convert(device_page(operations.ledger, wanted, after, limit), DeviceList)

    @get("/devices/{name:str}", sync_to_thread=True)
    def show(name: FromPath[str]) -> dict[str, Any]:
        """Show all that is known of a device: board, arms, rounds, profile, certificates, releases, refusals."""
        shown: dict[str, Any] = msgspec.to_builtins(device_shown(operations.ledger, operations.fleet, name, refused()))
        return shown

    return [devices, show]


def _asking(operations: Operations) -> list[HTTPRouteHandler]:
    @post("/devices/{name:str}/logs", status_code=202, sync_to_thread=True)
    def ask_for_log(name: FromPath[str], lines: Lines = 200, follow_s: FollowSeconds = 0.0) -> dict[str, Any]:
        """Ask a device for its last lines and, for some seconds, for new ones; GET returns what has arrived."""
        operations.ask_for_log(name, lines, follow_s)
        return {"device": name, "state": "asked"}

    @get("/devices/{name:str}/logs", sync_to_thread=True)
    def log(name: FromPath[str], after: Annotated[int, QueryParameter(ge=0)] = 0) -> DeviceLog:
        """Show the lines that a device has sent, after a line's number."""
        found = operations.log_lines(name, after)
        return DeviceLog(
            name,
            [
                LogLineSeen(one.sequence, one.line.at_s, one.line.level, one.line.text, one.reason, one.dropped)
                for one in found
            ],
        )

    @post("/devices/{name:str}/predict", status_code=200)
    async def predict(
        name: FromPath[str], data: JSONBody[dict[str, Any]], patience_s: Patience = 60.0
    ) -> dict[str, Any]:
        """Ask a device's model; the body and the answer are those of POST /predict of the device's own endpoint."""
        return await operations.predictions.predict(name, data, patience_s)

    return [ask_for_log, log, predict]


def _changing(operations: Operations) -> list[HTTPRouteHandler]:
    @put("/devices/{name:str}/tags/{tag:str}", status_code=200, sync_to_thread=True)
    def tag(name: FromPath[str], tag: FromPath[str], asker: AskedBy) -> dict[str, Any]:
        """Give a device a tag."""
        operations.tag(name, tag, asker)
        return {"device": name, "tag": tag, "state": "tagged"}

    @delete("/devices/{name:str}/tags/{tag:str}", status_code=200, sync_to_thread=True)
    def untag(name: FromPath[str], tag: FromPath[str], asker: AskedBy) -> dict[str, Any]:
        """Take a tag from a device."""
        operations.untag(name, tag, asker)
        return {"device": name, "tag": tag, "state": "untagged"}

    @delete("/devices/{name:str}", status_code=200, sync_to_thread=True)
    def forget(name: FromPath[str], asker: AskedBy) -> dict[str, Any]:
        """Forget a device that is gone."""
        operations.forget(name, asker)
        return {"device": name, "state": "forgotten"}

    return [tag, untag, forget]
