"""Pages of devices: the fleet with filters, page by page, and one device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlencode

from litestar import MediaType, get
from litestar.params import FromPath, FromQuery, QueryParameter

from server.dashboard.charts import profile_bars
from server.dashboard.templates import render
from server.storage.registry_queries import DeviceFilter, Standing
from server.views.device import device_shown
from server.views.fleet import fleet_page

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from litestar.handlers import HTTPRouteHandler

    from server.queue.operations import Operations

Text = Annotated[str, QueryParameter(max_length=200)]
_HERE = "/ui/"


def device_pages(operations: Operations, refused: Callable[[], Mapping[str, int]]) -> list[HTTPRouteHandler]:
    """Return the routes.

    Args:
        operations: the operator's side of the server.
        refused: returns how many messages were refused since the start, by ``DEVICE: REASON``.
    """
    ledger, name_of_fleet = operations.ledger, operations.fleet

    @get("/", media_type=MediaType.HTML, sync_to_thread=True)
    def fleet(  # a parameter for each filter
        q: Text = "",
        in_state: Annotated[str, QueryParameter(name="state", max_length=200)] = "",
        tag: Text = "",
        board: Text = "",
        version: Text = "",
        standing: FromQuery[Standing] = "",
        after: Text = "",
        before: Text = "",
    ) -> str:
        given = {"q": q.strip(), "state": in_state, "tag": tag.strip(), "board": board.strip(), "version": version}
        wanted = DeviceFilter(given["q"], in_state, given["tag"], given["board"], version, standing)
        shown = fleet_page(ledger, name_of_fleet, wanted, after, before)
        given["standing"] = standing
        kept = {key: value for key, value in given.items() if value}
        links = {
            "first": f"?{urlencode(kept)}",
            "previous": f"?{urlencode({**kept, 'before': shown['previous'] or ''})}",
            "next": f"?{urlencode({**kept, 'after': shown['next'] or ''})}",
        }
        return render("fleet.html.jinja", {"here": _HERE, "given": given, "links": links, **shown})

    @get("/devices/{name:str}", media_type=MediaType.HTML, sync_to_thread=True)
    def device(name: FromPath[str]) -> str:
        shown = device_shown(ledger, name_of_fleet, name, refused())
        context = {
            "here": _HERE,
            "device": shown,
            "bars": profile_bars(shown["profile"]),
            "lines": [received.line for received in operations.log_lines(name, 0)],
        }
        return render("device.html.jinja", context)

    return [fleet, device]
