"""A fleet that signs releases, and a device that has pinned its keys, in folders of a test."""

from __future__ import annotations

import datetime as dt
import hashlib
from typing import TYPE_CHECKING

from edge_runtime.releases.pins import take_key_list
from edge_runtime.releases.require import require_release
from server.trust.folder import init_trust
from server.trust.releases import ReleaseBook

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_runtime.releases.statement import Release
    from server.trust.folder import Trust

NOW_S = 1_800_000_000.0


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def new_trust(folder: Path, fleet: str = "default") -> Trust:
    return init_trust(folder, fleet, ["127.0.0.1"], 8443, dt.datetime.now(dt.timezone.utc))


class ReleaseSite:
    """A server's releases and one device. ``answers`` overrides what the server says, by resource."""

    def __init__(self, root: Path, trust: Trust) -> None:
        self.trust, self.device = trust, root / "edge-trust"
        self.now_s = NOW_S
        self.book = ReleaseBook(trust, lambda: self.now_s)
        self.asked: list[str] = []
        self.answers: dict[str, bytes | None] = {}

    def pin(self, data: bytes | None = None) -> bool:
        return take_key_list(self.device, "default", data or self.book.key_list())

    def ask(self, resource: str, _max_bytes: int) -> bytes | None:
        self.asked.append(resource)
        if resource in self.answers:
            return self.answers[resource]
        if resource == "/release-keys":
            return self.book.key_list()
        return self.book.release_of(resource.split("/")[1])

    def require(
        self, sha256: str, stored: Path | None = None, ask: Callable[[str, int], bytes | None] | None = None
    ) -> Release | None:
        return require_release(self.device, "default", "bundle", sha256, ask or self.ask, stored)
