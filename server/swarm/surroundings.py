"""What the sessions of a process share."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edge_runtime.network.address import BrokerAddress
    from edge_runtime.network.cause import Cause
    from server.swarm.counts import Counts
    from server.swarm.entrance import Entrance
    from server.swarm.shared_tls import SharedTls
    from server.swarm.training import Training


@dataclass
class Surroundings:
    """What the sessions of a process share.

    Attributes:
        address: the broker.
        fleet: the fleet's name.
        tags: what jobs can name the sessions by, beside the tag of every swarm.
        counts: what they have seen; added to.
        entrance: through which they connect.
        on_plan: called with the index of a round when its plan arrives.
        connected: sessions that are connected.
        causes: why logins failed, the last cause of each kind.
        is_empty: set while no session is connected.
        training: trains their rounds; None: they train in no time.
        tls: makes their connections with TLS; None: they have none.
        refusal: why a plan was refused last; None: none was.
    """

    address: BrokerAddress
    fleet: str
    tags: Sequence[str]
    counts: Counts
    entrance: Entrance
    on_plan: Callable[[int], None] = lambda _round: None
    connected: int = 0
    causes: dict[str, Cause] = field(default_factory=dict)
    is_empty: asyncio.Event = field(default_factory=asyncio.Event)
    training: Training | None = None
    tls: SharedTls | None = None
    refusal: str | None = None

    def __post_init__(self) -> None:
        """Nobody is connected yet."""
        self.is_empty.set()

    def came(self) -> None:
        """Count a session that is connected."""
        self.connected += 1
        self.counts.connects += 1
        self.is_empty.clear()

    def went(self) -> None:
        """Count a session that is connected no more."""
        self.connected -= 1
        self.counts.disconnects += 1
        if self.connected == 0:
            self.is_empty.set()
