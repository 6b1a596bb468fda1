"""What a frozen front would save a forward-only board, and what it would leave untrained."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from edge_runtime.bundle.layout import front_size, total_size
from server.bandit.arms import Arm, price, price_left

if TYPE_CHECKING:
    from edge_runtime.protocol.profile import Profile
    from server.bandit.arms import PriceBasis
    from server.job.fitted import FittedJob


def warm_seconds(arm: Arm, basis: PriceBasis, profile: Profile | None) -> float | None:
    """Return the seconds of a round's local steps with a frozen front, once each row's activation is kept.

    Args:
        arm: a forward arm, or a level that trains behind a split.
        basis: what its price depends on.
        profile: the board's profile; None: not known.

    Returns:
        The seconds; None where no profile has the split's graphs.
    """
    frozen = msgspec.structs.replace(basis, rule=msgspec.structs.replace(basis.rule, front="frozen"))
    priced = price(msgspec.structs.replace(arm, front_is_frozen=True), frozen, profile)
    return None if priced.profile_s is None else priced.profile_s * price_left(priced.front_share, 0.0)


def what_it_trains(fitted: FittedJob) -> str:
    """Return, in words, what a job with a frozen front trains and when its steps are as quick as said."""
    parameters = fitted.manifest.parameters
    size = total_size(parameters)
    left = size - front_size(parameters, fitted.split)
    job = fitted.job if fitted.job.stld is None else fitted.job.stld
    rows = job.steps * job.batch_size
    return (
        f'with train_front_from = "never" in [schedule], once each row was seen (a round sees {rows}); it trains the '
        f"{left:,} of {size:,} parameters behind split {fitted.split}"
    )
