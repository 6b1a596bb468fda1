"""Options of the bandit, as ``[bandit]`` in job.toml gives them."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Policy = Literal["thompson", "paper", "ucb", "epsilon", "uniform", "fixed"]


class BanditOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the bandit chooses arms.

    Attributes:
        policy: see policies.py.
        discount: weight of an observation after one more round (``thompson``).
        explored_share: share of choices that explore (``epsilon``); share of the pool that is replaced (``paper``).
        window: number of an arm's last rewards that count (``paper``, ``ucb``, ``epsilon``), and rounds of exploitation
            between two refreshes (``paper``).
        pool: number of arms in a device's pool (``paper``).
    """

    policy: Policy = "thompson"
    discount: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.95
    explored_share: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.2
    window: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 5
    pool: Annotated[int, msgspec.Meta(ge=2, le=64)] = 3
