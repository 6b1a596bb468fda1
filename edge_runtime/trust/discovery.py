"""Looks for servers that announce themselves in the local network, by mDNS; what they say is only what to try."""

from __future__ import annotations

import contextlib
import logging
import queue
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_runtime.trust.announcement import SERVICE, from_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from zeroconf import ServiceStateChange, Zeroconf

    from edge_runtime.trust.announcement import Announcement

_LOG = logging.getLogger(__name__)
BROWSE_S = 4.0
_OTHERS_S = 1.0
_RESOLVE_MS = 2000
_MOST = 32
"""Servers that are listened to: anybody may announce as many as they like."""


@dataclass(frozen=True)
class Found:
    """What was found.

    Attributes:
        urls: where a server with the authority may be.
        said: where there are none: what there is instead, for an error.
    """

    urls: Sequence[str]
    said: str


def discover(authority_sha256: bytes, browse_s: float = BROWSE_S, interfaces: Sequence[str] | None = None) -> Found:
    """Look for the servers of an authority for some seconds.

    Args:
        authority_sha256: hash of the authority's certificate, from the token.
        browse_s: how long.
        interfaces: addresses of this machine's interfaces; None: all of them.
    """
    try:
        heard = browse(browse_s, interfaces, lambda one: one.authority_sha256 == authority_sha256.hex())
    except ImportError:
        return Found([], "it was not looked for in the local network: pip install 'covey[mdns]' on this device")
    except OSError as error:
        return Found([], f"it cannot be looked for in the local network: {error.strerror or error}")
    return chosen(heard, authority_sha256)


def chosen(heard: Sequence[Announcement], authority_sha256: bytes) -> Found:
    """Return those of an authority."""
    own = [one for one in heard if one.authority_sha256 == authority_sha256.hex()]
    urls = list(dict.fromkeys(url for one in own for url in one.urls))
    if urls:
        _LOG.info("servers that announce themselves with the token's authority: %s", ", ".join(urls))
        return Found(urls, "")
    if not heard:
        return Found([], "no server announces itself in the local network (covey serve --announce)")
    others = ", ".join(f"{one.fleet} at {(one.urls or ['no address'])[0]}" for one in heard[:3])
    return Found(
        [], f"{len(heard)} in the local network announce themselves, none with the token's authority: {others}"
    )


def browse(
    browse_s: float,
    interfaces: Sequence[str] | None = None,
    is_wanted: Callable[[Announcement], bool] = lambda _one: False,
) -> list[Announcement]:
    """Return the servers that answer within some seconds; once a wanted one has answered, within one second more.

    Raises:
        ImportError: the library zeroconf is not installed.
        OSError: this machine has no network for it.
    """
    from zeroconf import InterfaceChoice, ServiceBrowser, Zeroconf  # noqa: PLC0415 an extra

    names: queue.SimpleQueue[str] = queue.SimpleQueue()

    def seen(zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:  # noqa: ARG001
        if state_change.name == "Added":
            names.put(name)

    zeroconf = Zeroconf(interfaces=InterfaceChoice.All if interfaces is None else list(interfaces))
    with contextlib.closing(zeroconf):
        browser = ServiceBrowser(zeroconf, SERVICE, handlers=[seen])
        ends_at = time.monotonic() + browse_s
        found: list[Announcement] = []
        while len(found) < _MOST and (left_s := ends_at - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                one = _resolved(zeroconf, names.get(timeout=left_s))
                if one is not None:
                    found.append(one)
                    if is_wanted(one):
                        ends_at = min(ends_at, time.monotonic() + _OTHERS_S)
        browser.cancel()
        return found


def _resolved(zeroconf: Zeroconf, name: str) -> Announcement | None:
    info = zeroconf.get_service_info(SERVICE, name, timeout=_RESOLVE_MS)
    return None if info is None else from_text(info.properties, info.parsed_scoped_addresses(), info.port)
