"""Says what to do about a round that has failed, from what became of its offers."""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING

from server.rounds.state_machine import OfferState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from server.storage.records import OfferRecord

_MOST_REASONS = 3
_FAILED = (OfferState.REFUSED.value, OfferState.LOST.value)


def failure_hint(offers: Iterable[OfferRecord], index: int) -> str:
    """Return what to do about a failed round: the devices' own reasons, the commonest first.

    Args:
        offers: the job's offers.
        index: index of the round.
    """
    of_round = [offer for offer in offers if offer.index == index]
    reasons = collections.Counter(
        offer.detail.splitlines()[0] for offer in of_round if offer.state in _FAILED and offer.detail
    )
    late = sum(offer.state in (OfferState.OFFERED.value, OfferState.ACCEPTED.value) for offer in of_round)
    hints = [f"{reason} ({times} of {len(of_round)} offers)" for reason, times in reasons.most_common(_MOST_REASONS)]
    if late or not hints:
        hints.append(f"{late} of {len(of_round)} offers had no report at the deadline: raise deadline_s")
    return "; ".join(hints) + "; then start the job again"
