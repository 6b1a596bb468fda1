"""A mirror of the server's blobs: a cache nearer to the device, which is asked first and believed nothing.

What it sends counts if its hash is the one that was asked for. Whatever is wrong with it, the server itself is asked,
and the mirror is left alone for a while.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edge_runtime.errors import NetworkError
from edge_runtime.network.https import Https
from edge_runtime.network.pace import LeastSpeed

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.network.address import TlsFiles

_LOG = logging.getLogger(__name__)
_REST_S = 600.0
"""Seconds for which a mirror that failed is not asked; ours."""
_TIMEOUT_S = 10.0
"""Seconds that a mirror may be silent: the server can answer too."""
_LEAST = LeastSpeed(80 << 10, 2 * _TIMEOUT_S)
"""What a mirror must send: 4 KiB a second. Who has so slow a link loses nothing at the server, which has all of it."""


@dataclass
class Mirrors:
    """The mirrors that a device has been told of, and which of them are left alone.

    Attributes:
        tls: this member's TLS files. A mirror that asks for a certificate is shown it.
        clock: returns monotonic seconds.
    """

    tls: TlsFiles | None
    clock: Callable[[], float] = time.monotonic
    _rests_until: dict[str, float] = field(default_factory=dict)

    def at(self, url: object) -> Mirror | None:
        """Return the mirror at an address; None: it is left alone, or ``url`` is no address (a message has none)."""
        if not isinstance(url, str) or self.clock() < self._rests_until.get(url, 0.0):
            return None
        try:
            return Mirror(url, Https(url.rstrip("/"), self.tls, _TIMEOUT_S, _LEAST, self.clock), self)
        except NetworkError as error:
            _LOG.warning("the server names a mirror that cannot be asked: %s", error.what)
            return None

    def failed(self, url: str) -> None:
        """Leave a mirror alone for a while."""
        self._rests_until = {url: self.clock() + _REST_S}


@dataclass(frozen=True)
class Mirror:
    """A mirror that may be asked.

    Attributes:
        url: blobs are at ``<url>/<sha256>``.
        https: sends requests to it.
        mirrors: is told where it fails.
    """

    url: str
    https: Https
    mirrors: Mirrors

    def failed(self, sha256: str, cause: str) -> None:
        """Enter that it did not give a blob: it is left alone for a while."""
        _LOG.warning("the mirror %s did not give blob %s (%s); asking the server", self.url, sha256[:12], cause)
        self.mirrors.failed(self.url)
