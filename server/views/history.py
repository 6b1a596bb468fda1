"""All that a ledger says about one job's course: rounds, what became of each offer, and the arms that were chosen."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from server.storage import queries
from server.views.summary import job_shown

if TYPE_CHECKING:
    from server.storage.ledger import Ledger

_OFFER = ("index", "attempt", "device", "state", "detail", "level", "seconds", "loss", "bytes_up", "bytes_down")


def job_history(ledger: Ledger, name: str) -> dict[str, Any]:
    """Return what job_shown says, with ``offer_list`` and ``arm_list``.

    An offer has the round as ``round``, and what its device did: see OfferRecord. An arm has ``round``, ``attempt``,
    ``device`` and the arm's name, None where no arm fitted the device; without a bandit there are none.

    Raises:
        NoSuchJobError: there is no such job.
    """
    shown = job_shown(ledger, name)
    offers = []
    for offer in queries.offers_of(ledger, name):
        values = dataclasses.asdict(offer)
        offers.append({"round": values["index"]} | {key: values[key] for key in _OFFER[1:]})
    arms = [
        {"round": index, "attempt": attempt, "device": choice.device, "arm": choice.arm and choice.arm.name}
        for index, attempt, choice in queries.all_choices_of(ledger, name)
    ]
    return {**shown, "offer_list": offers, "arm_list": arms}
