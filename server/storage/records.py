"""What the ledger keeps of jobs, rounds, reports and devices, as typed records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from edge_runtime.bundle.levels import Level
from edge_runtime.protocol.layer_dropout import Stld
from edge_runtime.protocol.profile import Profile  # noqa: TC001 msgspec reads the types of a record at run time
from edge_runtime.protocol.step_rule import StepRule, rule_with

if TYPE_CHECKING:
    from collections.abc import Mapping

    from server.job.job import Job

# -- a round: its plan, its reports, its result ------------------------------------------------------------------------


class RoundPlan(msgspec.Struct, frozen=True):
    """What the devices of a round do.

    Attributes:
        split: of the forward-only devices.
        rule: of the forward-only devices.
        stld: settings of the backprop devices; None: the job has none.
        levels: the level of each backprop device, by name; the others are forward-only.
        back_perturbations: P2 of the forward-only devices whose P2 is not the rule's, by name.
        length_s: seconds from the offer to the last report that counts; None: the job's deadline.
        ineligible: devices that were online but whose owner's rules kept them from training, and why.
    """

    split: int
    rule: StepRule
    stld: Stld | None = None
    levels: dict[str, Level] = {}
    back_perturbations: dict[str, int] = {}
    length_s: float | None = None
    ineligible: dict[str, str] = {}

    def rule_of(self, device: str) -> StepRule:
        """Return the rule of a forward-only device."""
        return rule_with(self.rule, self.back_perturbations.get(device))

    def deadline_s(self, job: Job) -> float:
        """Return the seconds from the offer within which a report counts."""
        return job.deadline_s if self.length_s is None else min(self.length_s, job.deadline_s)


@dataclass(frozen=True)
class OpenAttempt:
    """The attempt that was open when the server stopped; ``offers`` has the state of each device's offer."""

    index: int
    attempt: int
    plan: RoundPlan
    offers: Mapping[str, str]


@dataclass(frozen=True)
class TakenReport:
    """A forward-only device's report.

    Attributes:
        scalars: packed projected gradients, see round_log.unpack_scalars.
        examples: the device's number of rows.
        front_s: seconds per front pass; None: not known.
        back_s: seconds per back pass; None: not known.
    """

    scalars: bytes
    examples: int
    front_s: float | None = None
    back_s: float | None = None


@dataclass(frozen=True)
class TakenDelta:
    """A backprop device's report: the delta's blob, the layers in it, and the device's number of rows."""

    sha256: str
    layers: list[int]
    examples: int


class MergeFigures(msgspec.Struct, frozen=True):
    """How a hybrid round was merged.

    Attributes:
        alpha: α, the factor by which the forward-only movement is longer than the backprop one; None: not known.
        backprop_shares: for each group that both kinds moved, the weight of the backprop mean, 0 to 1.
    """

    alpha: float | None = msgspec.field(name="scale")
    backprop_shares: list[float]


class RoundFigures(msgspec.Struct, frozen=True):
    """What a round's reports showed of the front and the back block. Unknown is None.

    Attributes:
        split: index of the back block's first layer.
        front_variance: V1, the variance that front directions cause in the scalars.
        back_variance: V2, the variance that back directions cause in the scalars.
        front_s: F1, seconds per front pass: the median over devices.
        back_s: F2, seconds per back pass: the median over devices.
        merge: how the two kinds of devices were merged; None where no device backpropagated.
        moment_sha256: the moment after the round, a blob; None where the job's rule keeps none.
    """

    split: int
    front_variance: float | None
    back_variance: float | None
    front_s: float | None
    back_s: float | None
    merge: MergeFigures | None = None
    moment_sha256: str | None = None


@dataclass(frozen=True)
class ClosedRound:
    """An aggregated round.

    Attributes:
        index: index of the round.
        base_sha256: the adapter that the round started from.
        result_sha256: the adapter that it led to.
        log_sha256: the round's log; None where backprop devices took part: the adapter then exists as a file only.
        log_size_bytes: size of the log; None as above.
        terms: directions in the log, which a replay adds up; 0 without a log.
        mean_square: mean square of the scalars, for the next round's normalisation; None: the rule does not use it.
        figures: what the reports showed.
    """

    index: int
    base_sha256: str
    result_sha256: str
    log_sha256: str | None
    log_size_bytes: int | None
    terms: int
    mean_square: float | None
    figures: RoundFigures


# -- what commands and benchmarks ask of the ledger --------------------------------------------------------------------


@dataclass(frozen=True)
class JobRecord:
    """A job. ``config`` is job.toml as JSON values; losses and accuracies are held-out; unknown is None."""

    name: str
    fleet: str
    bundle_sha256: str
    config: dict[str, Any]
    state: str
    loss_start: float | None
    accuracy_start: float | None
    result_dir: str | None
    priority: int = 0
    after: str | None = None
    bundle_path: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class RoundRecord:
    """An attempt at a round: ``open``, ``aggregated`` or ``abandoned``; unknown is None."""

    index: int
    attempt: int
    state: str
    result_sha256: str | None
    loss: float | None
    accuracy: float | None


@dataclass(frozen=True)
class AttemptRecord:
    """An attempt at a round with its plan, and its offers counted.

    Attributes:
        index: index of the round.
        attempt: number of the attempt, from 0.
        state: ``open``, ``aggregated`` or ``abandoned``.
        plan: what its devices do.
        offered: devices that it was offered to.
        reports: devices that reported; None: it was offered to none.
        slowest_s: seconds of the slowest report; None: there was none.
        bytes_up: bytes that its devices sent.
        bytes_down: bytes that its devices received.
        train_loss: mean training loss over the reports.
        loss: held-out loss of its adapter.
        accuracy: held-out accuracy of its adapter.
        result_sha256: its adapter.
        opened_at: UTC, as text.
        closed_at: UTC, as text.
    """

    index: int
    attempt: int
    state: str
    plan: RoundPlan
    offered: int
    reports: int | None
    slowest_s: float | None
    bytes_up: int | None
    bytes_down: int | None
    train_loss: float | None
    loss: float | None
    accuracy: float | None
    result_sha256: str | None
    opened_at: str
    closed_at: str | None


@dataclass(frozen=True)
class OfferRecord:
    """What became of a round's offer to one device. Unknown is None.

    Attributes:
        index: index of the round.
        attempt: number of the attempt, from 0.
        device: name of the device.
        state: a state_machine.OfferState.
        detail: why the device did not report.
        level: as in its plan; None: forward-only.
        seconds: of the local steps, as the device reports them.
        loss: training loss.
        layers: layers in its delta.
        personal_layers: number of layers that it kept to itself.
        peak_rss_bytes: peak memory of its process.
        bytes_up: bytes that it sent.
        bytes_down: bytes that it received.
    """

    index: int
    attempt: int
    device: str
    state: str
    detail: str | None
    level: Level | None
    seconds: float | None
    loss: float | None
    layers: list[int] | None
    personal_layers: int | None
    peak_rss_bytes: int | None
    bytes_up: int
    bytes_down: int


@dataclass(frozen=True)
class Traffic:
    """Sums over the reports of a job's aggregated rounds; bytes are means per report; None: there was no report."""

    reports: int
    devices: int
    front_passes: int | None
    back_passes: int | None
    bytes_up: float | None
    bytes_down: float | None


@dataclass(frozen=True)
class DeviceRecord:
    """A device that has announced itself; ``birth`` is its birth message as JSON values. Unknown is None."""

    fleet: str
    device: str
    state: str
    ineligible: str | None
    reason: str | None
    quarantine: str | None
    birth: dict[str, Any]
    adapter_sha256: str | None
    last_seen: str
    reports: int
    mean_seconds: float | None


@dataclass(frozen=True)
class ProfileRecord:
    """A profile that a device published; ``profile`` is None where it was rejected, ``remarks`` then says why."""

    fleet: str
    device: str
    received_at: str
    profile: Profile | None
    bundle_sha256: str | None
    remarks: list[str]
