"""The bandit in a job: arms from what devices announced, choices and what was learned in the ledger."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from edge_runtime.seeds import arm_seed
from server.bandit.arms import Work, backprop_arms, forward_arms, job_splits, offers_of
from server.bandit.choices import Candidate, expected_s
from server.bandit.choose import choose_at_best_split
from server.bandit.state import BanditState, Reported, observe_loss, observe_reports
from server.fleet.cohort import shares
from server.planning.chooser import Assignment
from server.planning.levels import level_reasons
from server.storage.queries import bandit_state, choices_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edge_runtime.protocol.messages import Report
    from server.bandit.arms import Offer
    from server.bandit.choices import Choice
    from server.fleet.devices import Device
    from server.job.fitted import FittedJob
    from server.job.job import JobBandit
    from server.storage.ledger import Ledger

_LOG = logging.getLogger(__name__)
_LEAST_LENGTH_S = 10.0


class Configurator:
    """Chooses the arms of one job's devices: the Chooser of a job with [bandit].

    Args:
        fitted: the job and its bundle.
        options: the job's [bandit].
        ledger: what was learned before a restart is in it, and what is learned goes into it.
    """

    def __init__(self, fitted: FittedJob, options: JobBandit, ledger: Ledger) -> None:
        job, manifest = fitted.job, fitted.manifest
        self._fitted, self._job, self._options = fitted, job, options
        self._ledger = ledger
        self._work = Work(
            layers=manifest.model.layers,
            tokens=manifest.task.max_tokens,
            steps=job.steps,
            batch_size=job.batch_size,
            rule=job.step,
            stld=job.stld,
        )
        splits = job_splits(manifest, fitted.split, any_split=options.splits)
        self._forward = forward_arms(splits, options.back_perturbations)
        self._backprop = backprop_arms(fitted.levels)
        self._known_offers: dict[str, tuple[object, list[Offer]]] = {}
        self._choices: dict[str, Choice] = {}
        self._sent_at: dict[str, float] = {}
        self._reported: dict[str, tuple[float, float]] = {}
        self.state = bandit_state(ledger, job.name) or BanditState()

    def offers(self, device: Device) -> list[Offer]:
        """Return the arms of a device, with those that it is not offered and why; empty: it takes no part."""
        key = (device.birth, device.profile, device.refused_level)
        known = self._known_offers.get(device.name)
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
        elif self._job.stld is None or self._job.stld.forward_only:
            arms, left_out = self._forward, {}
        else:
            arms, left_out = [], {}
        found = offers_of(arms, self._work, device.profile, left_out, self._options.most_power_w)
        self._known_offers[device.name] = (key, found)
        return found

    def can_work(self, device: Device) -> bool:
        """Whether a device has any arm; deadlines are looked at when the round is known."""
        return any(made.left_out is None for made in self.offers(device))

    def assign(self, devices: Sequence[Device], index: int, attempt: int, enough: int, now: float) -> Assignment:
        """Choose the arms of a round's devices, and enter why."""
        job = self._job
        rows = {device.name: (device.birth.rows if device.birth is not None else None) or 1 for device in devices}
        share = shares(rows, job.weighting)
        candidates = [Candidate(device.name, share[device.name], self.offers(device)) for device in devices]
        rng = np.random.Generator(np.random.PCG64([arm_seed(job.seed, index), attempt]))
        self.state, choices = choose_at_best_split(
            self._options, self.state, candidates, enough, job.deadline_s, now, rng
        )
        encoded = {choice.device: msgspec.msgpack.encode(choice) for choice in choices}
        self._ledger.choices_made(job.name, index, attempt, encoded)
        self._begin(choices)
        for choice in choices:
            if choice.arm is None:
                _LOG.warning("round %d: %s gets no work: %s", index, choice.device, choice.why)
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
        # Before anything was reported, a profile may be of another day.
        if factor is None or known is None or not self.state.times:
            return None
        return max(_LEAST_LENGTH_S, factor * known)

    def _begin(self, choices: Sequence[Choice]) -> None:
        self._choices = {choice.device: choice for choice in choices}
        self._sent_at.clear()
        self._reported.clear()

    def resume(self, index: int, attempt: int) -> None:
        """Take up the choices of a round that was open when the server stopped."""
        self._begin(choices_of(self._ledger, self._job.name, index, attempt))

    def sent(self, device: str, now: float) -> None:
        """A device's plan was sent; the first sending counts, so that no time is too short."""
        self._sent_at.setdefault(device, now)

    def reported(self, device: str, report: Report, now: float) -> None:
        """A report was taken."""
        sent_at = self._sent_at.get(device)
        turnaround_s = report.seconds if sent_at is None else now - sent_at
        self._reported[device] = (report.seconds, turnaround_s)

    def closed(self, index: int, examples: Mapping[str, int], now: float) -> None:
        """Learn from the reports of a round that is aggregated; ``examples`` are the rows of each device."""
        reports = []
        share = shares(examples, self._job.weighting) if examples else {}
        for device in sorted(self._reported.keys() & share.keys()):
            reported_s, turnaround_s = self._reported[device]
            choice = self._choices.get(device)
            estimate = None if choice is None else choice.estimate
            if estimate is not None:
                reports.append(
                    Reported(
                        device,
                        estimate.arm,
                        share[device],
                        estimate.cost,
                        estimate.base_s,
                        reported_s,
                        turnaround_s,
                        now,
                    )
                )
        self.state = observe_reports(self.state, index, reports)
        self._save()

    def evaluated(self, index: int | None, loss: float) -> None:
        """Learn from an evaluation."""
        self.state = observe_loss(self._options, self.state, index, loss)
        self._save()

    def _save(self) -> None:
        self._ledger.bandit_is(self._job.name, msgspec.msgpack.encode(self.state))
