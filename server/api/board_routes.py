"""``/boards``: the devices with their profiles and what they have done with a bundle, in pages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec
from litestar import get
from litestar.params import QueryParameter

from server.api.board_schema import BoardPage
from server.views.boards import LARGEST_PAGE, boards_page

if TYPE_CHECKING:
    from litestar.handlers import HTTPRouteHandler

    from server.queue.operations import Operations

Hash = Annotated[str, QueryParameter(pattern="^[0-9a-f]{64}$")]
PageSize = Annotated[int, QueryParameter(ge=1, le=LARGEST_PAGE)]
LastName = Annotated[str, QueryParameter(max_length=63)]


def board_routes(operations: Operations) -> list[HTTPRouteHandler]:
    """Return the routes; ``operations`` has the ledger."""

    @get("/boards", sync_to_thread=True)
    def boards(bundle_sha256: Hash, most: PageSize = 100, after: LastName = "") -> BoardPage:
        """List what is known of each device for a bundle; ``next_after`` of an answer is ``after`` of the next."""
        return msgspec.convert(boards_page(operations.ledger, operations.fleet, bundle_sha256, most, after), BoardPage)

    return [boards]
