"""``/devices``: look at, tag and forget devices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from litestar import delete, get, put

from server.api.schema import DeviceList, DeviceStatus
from server.views.summary import device_list

if TYPE_CHECKING:
    from litestar.handlers import HTTPRouteHandler

    from server.queue.operations import Operations


def device_routes(operations: Operations, actor: str) -> list[HTTPRouteHandler]:
    """Return the routes.

    Args:
        operations: does what is asked.
        actor: who asks, for the audit.
    """

    @get("/devices", sync_to_thread=True)
    def devices() -> DeviceList:
        """List all devices that ever announced themselves."""
        return DeviceList([msgspec.convert(device, DeviceStatus) for device in device_list(operations.ledger)])

    @put("/devices/{name:str}/tags/{tag:str}", status_code=200, sync_to_thread=True)
    def tag(name: str, tag: str) -> dict[str, Any]:
        """Give a device a tag."""
        operations.tag(name, tag, actor)
        return {"device": name, "tag": tag, "state": "tagged"}

    @delete("/devices/{name:str}/tags/{tag:str}", status_code=200, sync_to_thread=True)
    def untag(name: str, tag: str) -> dict[str, Any]:
        """Take a tag from a device."""
        operations.untag(name, tag, actor)
        return {"device": name, "tag": tag, "state": "untagged"}

    @delete("/devices/{name:str}", status_code=200, sync_to_thread=True)
    def forget(name: str) -> dict[str, Any]:
        """Forget a device that is gone."""
        operations.forget(name, actor)
        return {"device": name, "state": "forgotten"}

    return [devices, tag, untag, forget]
