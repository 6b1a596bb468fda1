"""Draws up the next round: which devices are eligible, which take part, and what each is given."""

from __future__ import annotations

import collections
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from edge_runtime.protocol.step_rule import rule_with
from server.fleet.cohort import choose_cohort
from server.fleet.devices import ineligible
from server.job.job import enough_reports
from server.planning.adaptive import next_plan
from server.planning.bandit_assigner import BanditAssigner
from server.planning.levels import largest_level
from server.planning.memory_assigner import MemoryAssigner
from server.storage.queries import last_round_per_device

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from server.fleet.devices import Device
    from server.job.fitted import FittedJob
    from server.planning.assigner import Assigner
    from server.planning.feedback import Feedback
    from server.storage.ledger import Ledger
    from server.storage.records import RoundFigures, RoundPlan


@dataclass(frozen=True)
class DrawnRound:
    """An attempt at a round that can be offered.

    Attributes:
        index: index of the round.
        attempt: number of the attempt, from 0.
        devices: the devices that it is offered to, in the order of their names.
        plan: what they do.
    """

    index: int
    attempt: int
    devices: list[str]
    plan: RoundPlan


class Planner:
    """Draws up the rounds of one job.

    Args:
        fitted: the job and its bundle.
        ledger: says in which round each device was last chosen, before a restart.

    Attributes:
        assigner: decides levels, splits and P2.
        learn: takes feedback; does nothing where the assigner does not learn.
    """

    def __init__(self, fitted: FittedJob, ledger: Ledger) -> None:
        self._fitted = fitted
        self.assigner: Assigner
        self.learn: Callable[[Feedback], None]
        if fitted.job.bandit is None:
            self.assigner, self.learn = MemoryAssigner(fitted), _learn_nothing
        else:
            bandit = BanditAssigner(fitted, fitted.job.bandit, ledger)
            self.assigner, self.learn = bandit, bandit.learn
        self._last_chosen = last_round_per_device(ledger, fitted.job.name)

    def eligible(self, devices: Mapping[str, Device], index: int, now: float) -> list[str]:
        """Return the devices that are ready and can be given something in a round, in the order of their names.

        Args:
            devices: all devices, by name.
            index: index of the round.
            now: seconds of the server's clock.
        """
        early = self.early(devices, index)
        return sorted(
            name
            for name, device in devices.items()
            if name not in early and device.is_ready(now) and self.assigner.can_work(device)
        )

    def early(self, devices: Mapping[str, Device], index: int) -> dict[str, str]:
        """Return why devices that are here are not given anything yet: the job's backprop devices train first."""
        stld = self._fitted.job.stld
        if stld is None or index >= stld.forward_from:
            return {}
        reason = f"it trains forward-only, which begins with round {stld.forward_from} of the job"
        return {
            name: reason
            for name in sorted(devices)
            if devices[name].is_here and largest_level(self._fitted, devices[name]) is None
        }

    def draw_up(
        self,
        devices: Mapping[str, Device],
        eligible: Sequence[str],
        index: int,
        attempt: int,
        history: Sequence[RoundFigures],
        now: float,
    ) -> DrawnRound:
        """Choose the cohort of a round and its plan.

        Args:
            devices: all devices, by name.
            eligible: names of the devices that can be chosen.
            index: index of the round.
            attempt: number of the attempt, from 0.
            history: figures of the closed rounds, in order.
            now: seconds of the server's clock.
        """
        job = self._fitted.job
        for name in eligible:
            self._last_chosen.setdefault(name, index - 1)
        waited = {name: index - 1 - self._last_chosen[name] for name in eligible}
        cohort = choose_cohort(eligible, job.cohort, job.over_selection, job.seed, index, attempt, waited)
        self._last_chosen.update(dict.fromkeys(cohort, index))
        enough = enough_reports(job, len(cohort))
        given = self.assigner.assign([devices[name] for name in cohort], index, attempt, enough, now)
        plan = next_plan(self._fitted, index, history, given.levels)
        # The rule gets the P2 of most devices, so devices that share directions never differ from it.
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
        return DrawnRound(index, attempt, given.devices, plan)


def _learn_nothing(_feedback: Feedback) -> None:
    """Ignore feedback."""
