"""The assigner of a job with [bandit]: connects the pure bandit to devices, ledger and feedback."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from edge_runtime.seeds import arm_seed
from server.bandit.arms import PriceBasis, backprop_arms, forward_arms, job_splits, price_arms
from server.bandit.choices import Candidate, expected_s
from server.bandit.choose import choose
from server.bandit.state import BanditState, Reported, observe_loss, observe_reports
from server.fleet.cohort import shares
from server.planning.assigner import Assignment
from server.planning.feedback import Feedback, LossMeasured, PlanSent, ReportAccepted, RoundClosing, RoundResumed
from server.planning.levels import level_reasons, takes_part
from server.storage.queries import bandit_state, choices_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from server.bandit.arms import Arm, PricedArm
    from server.bandit.choices import Choice
    from server.fleet.devices import Device
    from server.job.fitted import FittedJob
    from server.job.job import JobBandit
    from server.storage.ledger import Ledger

_LOG = logging.getLogger(__name__)
_LEAST_LENGTH_S = 10.0
"""Shortest length that ``deadline_factor`` can give a round, in seconds: expectations of short rounds are rough."""


class BanditAssigner:
    """Assigns work by the bandit's choices, and learns from feedback.

    Args:
        fitted: the job and its bundle.
        options: the job's [bandit].
        ledger: has what was learned before a restart; every choice and every new state is entered in it.

    Attributes:
        state: what the bandit knows.
    """

    def __init__(self, fitted: FittedJob, options: JobBandit, ledger: Ledger) -> None:
        job, manifest = fitted.job, fitted.manifest
        self._fitted, self._job, self._options = fitted, job, options
        self._ledger = ledger
        self._basis = PriceBasis(
            layers=manifest.model.layers,
            tokens=manifest.task.max_tokens,
            steps=job.steps,
            batch_size=job.batch_size,
            rule=job.rule_of(0),
            stld=job.stld,
        )
        self._splits = job_splits(manifest, fitted.split, any_split=options.splits)
        self._forward = self._forward_arms()
        self._backprop = self._backprop_arms()
        self._priced: dict[str, tuple[object, list[PricedArm]]] = {}
        self._choices: dict[str, Choice] = {}
        self._sent_at: dict[str, float] = {}
        self._reported: dict[str, tuple[float, float, float | None]] = {}
        self.state = bandit_state(ledger, job.name) or BanditState()

    def _forward_arms(self) -> list[Arm]:
        frozen = self._basis.rule.front_is_frozen
        return forward_arms(self._splits, self._options.back_perturbations, front_is_frozen=frozen)

    def _backprop_arms(self) -> list[Arm]:
        frozen = self._basis.rule.front_is_frozen
        return backprop_arms(self._fitted.levels, self._fitted.split if frozen else None)

    def _is_at(self, index: int) -> None:
        """Price the arms anew where the front is trained from this round on, or frozen again after a restart."""
        rule = self._job.rule_of(index)
        if rule.front_is_frozen != self._basis.rule.front_is_frozen:
            self._basis = msgspec.structs.replace(self._basis, rule=rule)
            self._forward, self._backprop = self._forward_arms(), self._backprop_arms()
            self._priced.clear()

    def arms_of(self, device: Device) -> list[PricedArm]:
        """Return a device's arms, including those that it cannot be given and why; empty: it takes no part."""
        key = (device.birth, device.profile, device.refused_level)
        known = self._priced.get(device.name)
        if known is not None and known[0] == key:
            return known[1]
        reasons = level_reasons(self._fitted, device)
        if reasons is not None and any(reason is None for reason in reasons.values()):
            left_out = {
                arm: reason
                for arm in self._backprop
                if arm.level is not None and (reason := reasons.get(arm.level)) is not None
            }
            arms = self._backprop
        elif takes_part(self._job, None):
            arms, left_out = self._forward, {}
        else:
            arms, left_out = [], {}
        found = price_arms(arms, self._basis, device.usable_profile, left_out, self._options.most_power_w)
        self._priced[device.name] = (key, found)
        return found

    def can_work(self, device: Device) -> bool:
        """See Assigner; ``assign`` also leaves out the arms that would miss the round's deadline."""
        return any(priced.left_out is None for priced in self.arms_of(device))

    def assign(self, devices: Sequence[Device], index: int, attempt: int, enough: int, now: float) -> Assignment:
        """See Assigner; enters each choice and its reason in the ledger."""
        job = self._job
        self._is_at(index)
        rows = {device.name: (device.birth.rows if device.birth is not None else None) or 1 for device in devices}
        share = shares(rows, job.weighting)
        candidates = [Candidate(device.name, share[device.name], self.arms_of(device)) for device in devices]
        rng = np.random.Generator(np.random.PCG64([arm_seed(job.seed, index), attempt]))
        self.state, choices = choose(self._options, self.state, candidates, enough, job.deadline_s, now, rng)
        encoded = {choice.device: msgspec.msgpack.encode(choice) for choice in choices}
        self._ledger.choices_made(job.name, index, attempt, encoded)
        self._begin(choices)
        for choice in choices:
            if choice.arm is None:
                _LOG.warning("round %d: %s is not given any arm: %s", index, choice.device, choice.why)
        given = [(choice.device, choice.arm) for choice in choices if choice.arm is not None]
        split = next((arm.split for _, arm in given if arm.split is not None), None)
        return Assignment(
            devices=[device for device, _ in given],
            levels={device: arm.level for device, arm in given if arm.level is not None},
            back_perturbations={
                device: arm.back_perturbations for device, arm in given if arm.back_perturbations is not None
            },
            split=split,
            length_s=self._length_s(choices, enough),
        )

    def _length_s(self, choices: Sequence[Choice], enough: int) -> float | None:
        factor, known = self._options.deadline_factor, expected_s(choices, enough)
        # Before the first report, times come from profiles alone, and a profile may be old.
        if factor is None or known is None or not self.state.times:
            return None
        return max(_LEAST_LENGTH_S, factor * known)

    def _begin(self, choices: Sequence[Choice]) -> None:
        self._choices = {choice.device: choice for choice in choices}
        self._sent_at.clear()
        self._reported.clear()

    def learn(self, feedback: Feedback) -> None:
        """Take in feedback; what was learned is entered in the ledger."""
        match feedback:
            case RoundResumed(index, attempt):
                self._begin(choices_of(self._ledger, self._job.name, index, attempt))
            case PlanSent(device, at_s):
                # Of several sendings the first counts, so that no turnaround is too short.
                self._sent_at.setdefault(device, at_s)
            case ReportAccepted(device, steps_s, at_s, cold):
                sent_at = self._sent_at.get(device)
                self._reported[device] = (steps_s, steps_s if sent_at is None else at_s - sent_at, cold)
            case RoundClosing(index, examples, at_s):
                self.state = observe_reports(self.state, index, self._reports(examples, at_s))
                self._save()
            case LossMeasured(index, loss):
                self.state = observe_loss(self._options, self.state, index, loss)
                self._save()

    def _reports(self, examples: Mapping[str, int], now: float) -> list[Reported]:
        reports = []
        share = shares(examples, self._job.weighting) if examples else {}
        for device in sorted(self._reported.keys() & share.keys()):
            steps_s, turnaround_s, cold = self._reported[device]
            choice = self._choices.get(device)
            estimate = None if choice is None else choice.estimate
            if estimate is not None:
                reports.append(
                    Reported(
                        device=device,
                        arm=estimate.arm,
                        share=share[device],
                        cost=estimate.cost,
                        base_s=estimate.base_s,
                        reported_s=steps_s,
                        turnaround_s=turnaround_s,
                        at_s=now,
                        cold=cold,
                        front_share=estimate.front_share,
                    )
                )
        return reports

    def _save(self) -> None:
        self._ledger.bandit_is(self._job.name, msgspec.msgpack.encode(self.state))
