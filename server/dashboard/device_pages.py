"""Pages of devices: the fleet with filters, page by page, and one device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlencode

from litestar import MediaType, get
from litestar.params import Parameter

from server.dashboard.charts import profile_bars
from server.dashboard.templates import render
from server.storage.fleet_queries import DeviceFilter
from server.views.device import device_shown
from server.views.fleet import fleet_page

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from litestar.handlers import HTTPRouteHandler

    from server.queue.operations import Operations

Text = Annotated[str, Parameter(max_length=200)]
PageNumber = Annotated[int, Parameter(ge=1, le=1_000_000)]
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
        in_state: Annotated[str, Parameter(query="state", max_length=200)] = "",
        tag: Text = "",
        board: Text = "",
        version: Text = "",
        page: PageNumber = 1,
    ) -> str:
        given = {"q": q.strip(), "state": in_state, "tag": tag.strip(), "board": board.strip(), "version": version}
        wanted = DeviceFilter(given["q"], in_state, given["tag"], given["board"], version)
        shown = fleet_page(ledger, name_of_fleet, wanted, page)
        kept = {key: value for key, value in given.items() if value}
        links = {number: f"?{urlencode({**kept, 'page': number})}" for number in (shown["page"] - 1, shown["page"] + 1)}
        return render("fleet.html.jinja", {"here": _HERE, "given": given, "links": links, **shown})

    @get("/devices/{name:str}", media_type=MediaType.HTML, sync_to_thread=True)
    def device(name: str) -> str:
        shown = device_shown(ledger, name_of_fleet, name, refused())
        context = {
            "here": _HERE,
            "device": shown,
            "bars": profile_bars(shown["profile"]),
            "lines": [received.line for received in operations.log_lines(name, 0)],
        }
        return render("device.html.jinja", context)

    return [fleet, device]
