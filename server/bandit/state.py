"""What the bandit has learned: reports teach it times, evaluations teach it gains."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec

from server.bandit import gains as gain_model
from server.bandit.arms import Arm, price_left
from server.bandit.gains import Gains
from server.bandit.step_times import DeviceTimes, observe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from server.bandit.options import BanditOptions


class Pool(msgspec.Struct, frozen=True):
    """State of ``paper`` for one device: its arms, those of them not tried yet, and rounds of exploitation left."""

    arms: list[str]
    untried: list[str]
    exploit_left: int


class Used(msgspec.Struct, frozen=True, array_like=True):
    """A report since the last evaluation: its round, device and arm, its share of the average, its turnaround."""

    round: int
    device: str
    arm: str
    share: float
    seconds: float


class BanditState(msgspec.Struct, frozen=True):
    """All that a job's bandit has learned.

    Attributes:
        gains: gains of the arms, over the fleet.
        times: by device, what its reports showed.
        per_pass: by device that has reported, its seconds per pass; the median predicts devices without a profile.
        rewards: by device and arm name, the last gains per second.
        pools: by device, the state of ``paper``.
        used: reports since the last evaluation.
        loss: the last held-out loss, in nats; None: there was none.
    """

    gains: Gains = Gains()
    times: dict[str, DeviceTimes] = {}
    per_pass: dict[str, float] = {}
    rewards: dict[str, dict[str, list[float]]] = {}
    pools: dict[str, Pool] = {}
    used: list[Used] = []
    loss: float | None = None


class Reported(msgspec.Struct, frozen=True):
    """A report that is in a round's average.

    Attributes:
        device: name of the device.
        arm: the arm that it ran.
        share: its share of the average.
        cost: cost of the arm, as in its PricedArm.
        base_s: the arm's seconds before any report, as in its Estimate.
        reported_s: seconds of the local steps, as the device reports them.
        turnaround_s: seconds from plan to report on the server's clock.
        at_s: seconds of that clock when the report came.
        cold: share of the rows for which a frozen front was run; None: the front is not frozen.
        front_share: as in the arm's PricedArm.
    """

    device: str
    arm: Arm
    share: float
    cost: float
    base_s: float | None
    reported_s: float
    turnaround_s: float
    at_s: float
    cold: float | None = None
    front_share: float = 0.0

    @property
    def price_left(self) -> float:
        """The share of the arm's price that was to be paid: rounds with kept activations are not mixed with others."""
        return price_left(self.front_share, 1.0 if self.cold is None else self.cold)


def observe_reports(state: BanditState, round_index: int, reports: Sequence[Reported]) -> BanditState:
    """Return the state after a round's reports."""
    times, per_pass, used = dict(state.times), dict(state.per_pass), list(state.used)
    for report in reports:
        before = times.get(report.device)
        base_s = None if report.base_s is None else report.base_s * report.price_left
        after = observe(
            before,
            report.arm.name,
            base_s,
            report.reported_s,
            report.turnaround_s,
            report.at_s,
            report.device,
            report.cold,
        )
        if after is before or after.reported_at is None:
            continue
        times[report.device] = after
        per_pass[report.device] = min(report.reported_s, report.turnaround_s) / (report.cost * report.price_left)
        used.append(Used(round_index, report.device, report.arm.name, report.share, report.turnaround_s))
    return msgspec.structs.replace(state, times=times, per_pass=per_pass, used=used)


def observe_loss(options: BanditOptions, state: BanditState, round_index: int | None, loss: float) -> BanditState:
    """Return the state after an evaluation of a round's adapter, or (None) of the adapter that the job starts from."""
    if round_index is None or state.loss is None or not math.isfinite(loss):
        return msgspec.structs.replace(state, loss=loss if math.isfinite(loss) else state.loss)
    seen = [entry for entry in state.used if entry.round <= round_index]
    later = [entry for entry in state.used if entry.round > round_index]
    gain = state.loss - loss
    use: dict[str, float] = {}
    spent: dict[str, float] = {}
    for entry in seen:
        use[entry.arm] = use.get(entry.arm, 0.0) + entry.share
        spent[entry.device] = spent.get(entry.device, 0.0) + entry.seconds
    rewards = dict(state.rewards)
    for entry in seen if options.policy in ("paper", "ucb", "epsilon") else ():
        mine = dict(rewards.get(entry.device, {}))
        mine[entry.arm] = [*mine.get(entry.arm, []), gain / max(spent[entry.device], 1e-9)][-options.window :]
        rewards[entry.device] = mine
    learned = gain_model.observe_gain(state.gains, use, gain, options.discount) if state.gains.arms else state.gains
    return msgspec.structs.replace(state, gains=learned, rewards=rewards, used=later, loss=loss)
