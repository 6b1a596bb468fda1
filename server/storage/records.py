"""Records that the ledger keeps of rounds: plans, figures of the scalars, figures of the merge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from edge_runtime.protocol.layer_dropout import Stld
from edge_runtime.protocol.step_rule import StepRule, rule_with

if TYPE_CHECKING:
    from server.job.job import Job


class RoundPlan(msgspec.Struct, frozen=True):
    """What the devices of a round do.

    Attributes:
        split: of the forward-only devices.
        rule: of the forward-only devices.
        stld: of the backprop devices; None: there are none in this job.
        levels: the level of each backprop device, by name; the others are forward-only.
        back_perturbations: P2 of each forward-only device that has another one than the rule's, by name.
        length_s: seconds from the offer to the last report that counts; None: the job's deadline.
        ineligible: devices that were here but took no work by their owner's rules, and why.
    """

    split: int
    rule: StepRule
    stld: Stld | None = None
    levels: dict[str, int] = {}
    back_perturbations: dict[str, int] = {}
    length_s: float | None = None
    ineligible: dict[str, str] = {}

    def rule_of(self, device: str) -> StepRule:
        """Return the rule of a forward-only device."""
        return rule_with(self.rule, self.back_perturbations.get(device))

    def deadline_s(self, job: Job) -> float:
        """Return how long reports of the round count."""
        return job.deadline_s if self.length_s is None else min(self.length_s, job.deadline_s)


class RoundFigures(msgspec.Struct, frozen=True):
    """What a round showed of its blocks. Unknown is None.

    Attributes:
        split: index of the back block's first layer.
        front_variance: V1, the variance that front directions cause in the scalars.
        back_variance: V2, the variance that back directions cause.
        front_s: F1, seconds of a front pass: the median over devices.
        back_s: F2, seconds of a back pass.
        merge: how the two kinds of devices were merged; None where no device backpropagated.
    """

    split: int
    front_variance: float | None
    back_variance: float | None
    front_s: float | None
    back_s: float | None
    merge: MergeFigures | None = None


class MergeFigures(msgspec.Struct, frozen=True):
    """How a hybrid round was merged.

    Attributes:
        scale: α, how long the forward-only movement is for the backprop one; None: not known.
        backprop_shares: for each group that both kinds moved, the weight of the backprop mean: 1 is all of it.
    """

    scale: float | None
    backprop_shares: list[float]


@dataclass(frozen=True)
class ClosedRound:
    """An aggregated round, as far as the next one needs it.

    ``log_sha256`` and ``log_size_bytes`` are None where backprop devices took part: its adapter is had as a file only.
    """

    index: int
    base_sha256: str
    result_sha256: str
    log_sha256: str | None
    log_size_bytes: int | None
    terms: int
    mean_square: float | None
    figures: RoundFigures
