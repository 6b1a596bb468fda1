"""The addresses of a broker: one, or those of a cluster's nodes, of which a member uses one at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random

    from edge_runtime.network.address import BrokerAddress


class BrokerNodes:
    """Says which address a member uses now, and which one it tries next.

    Args:
        address: the broker, with its other addresses.
        rng: draws the order, so that a fleet spreads over the nodes; None, or an address that is in order: the order is
            that of the address.

    Attributes:
        now: the address that is used, or that is tried next.
    """

    def __init__(self, address: BrokerAddress, rng: random.Random | None = None) -> None:
        self._nodes = list(address.nodes())
        if rng is not None and not address.in_order and len(self._nodes) > 1:
            rng.shuffle(self._nodes)
        self.now = self._nodes[0]

    def __len__(self) -> int:
        return len(self._nodes)

    def go_on(self) -> None:
        """Take the next address; after the last one, the first again."""
        at = self._nodes.index(self.now)
        self.now = self._nodes[(at + 1) % len(self._nodes)]
