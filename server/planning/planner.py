"""Draws a round up: who can take part, who does, and with which work."""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING

import msgspec

from edge_runtime.protocol.step_rule import rule_with
from server.fleet.cohort import choose_cohort
from server.fleet.devices import ineligible
from server.job.job import enough_reports
from server.planning.adaptive import next_plan
from server.planning.by_bandit import Configurator
from server.planning.by_memory import LargestThatFits
from server.storage.queries import last_round_per_device

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from server.fleet.devices import Device
    from server.job.fitted import FittedJob
    from server.planning.chooser import Chooser
    from server.storage.ledger import Ledger
    from server.storage.records import RoundFigures, RoundPlan


class Planner:
    """Draws up the rounds of one job.

    Args:
        fitted: the job and its bundle.
        ledger: says who was chosen before a restart.

    Attributes:
        chooser: chooses levels, splits and P2.
    """

    def __init__(self, fitted: FittedJob, ledger: Ledger) -> None:
        self._fitted = fitted
        job = fitted.job
        self.chooser: Chooser = (
            LargestThatFits(fitted) if job.bandit is None else Configurator(fitted, job.bandit, ledger)
        )
        self._last_chosen = last_round_per_device(ledger, job.name)

    def eligible(self, devices: Mapping[str, Device]) -> list[str]:
        """Return the devices that are here, take work and can be given some, in the order of their names."""
        return sorted(
            name
            for name, device in devices.items()
            if device.is_here and device.ineligible is None and self.chooser.can_work(device)
        )

    def draw_up(
        self,
        devices: Mapping[str, Device],
        eligible: Sequence[str],
        index: int,
        attempt: int,
        history: Sequence[RoundFigures],
        now: float,
    ) -> tuple[list[str], RoundPlan]:
        """Return the cohort, in the order of the names, and its plan.

        Args:
            devices: all devices.
            eligible: names of those that can be chosen.
            index: index of the round.
            attempt: counts how often it was begun.
            history: figures of the closed rounds.
            now: the server's clock.
        """
        job = self._fitted.job
        for name in eligible:
            self._last_chosen.setdefault(name, index - 1)
        waited = {name: index - 1 - self._last_chosen[name] for name in eligible}
        cohort = choose_cohort(eligible, job.cohort, job.over_selection, job.seed, index, attempt, waited)
        self._last_chosen.update(dict.fromkeys(cohort, index))
        enough = enough_reports(job, len(cohort))
        given = self.chooser.assign([devices[name] for name in cohort], index, attempt, enough, now)
        plan = next_plan(self._fitted, index, history, given.levels)
        # The rule has the P2 of most devices; so devices that share directions never differ from it.
        counts = collections.Counter(given.back_perturbations.values())
        usual = max(sorted(counts), key=lambda p2: counts[p2], default=plan.rule.back_perturbations)
        plan = msgspec.structs.replace(
            plan,
            split=plan.split if given.split is None else given.split,
            rule=rule_with(plan.rule, usual),
            back_perturbations={name: p2 for name, p2 in given.back_perturbations.items() if p2 != usual},
            length_s=given.length_s,
            ineligible=ineligible(devices),
        )
        return given.devices, plan
