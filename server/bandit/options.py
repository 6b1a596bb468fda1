"""Options of the bandit, as a job file states them."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Policy = Literal["thompson", "paper", "ucb", "epsilon", "uniform", "fixed"]


class BanditOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How arms are chosen.

    Attributes:
        policy: see policies.py.
        discount: what an observation counts after one more round (``thompson``).
        explored_share: share of choices that explore (``epsilon``), of the pool that is replaced (``paper``).
        window: rewards of an arm that count (``paper``, ``ucb``, ``epsilon``), and rounds of exploitation (``paper``).
        pool: arms in a device's pool (``paper``).
    """

    policy: Policy = "thompson"
    discount: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.95
    explored_share: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.2
    window: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 5
    pool: Annotated[int, msgspec.Meta(ge=2, le=64)] = 3
