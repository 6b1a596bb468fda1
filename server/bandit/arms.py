"""Arms: a backprop device's level, or a forward-only device's split and P2, and what each costs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import msgspec

from edge_runtime.bundle.levels import Level, ascending, forward_passes
from edge_runtime.protocol.layer_dropout import Stld
from edge_runtime.protocol.profile import latency_s
from edge_runtime.protocol.step_rule import StepRule

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from edge_runtime.bundle.manifest import Manifest
    from edge_runtime.protocol.profile import GraphProfile, Profile


class Arm(msgspec.Struct, frozen=True, order=True):
    """What the bandit can choose for a device: ``backprop`` at a level, or ``forward`` at a split with P2.

    A frozen front makes another arm of a split and P2, or of a level: its times and gains are others. A level has a
    split where the front before it is frozen.
    """

    kind: Literal["backprop", "forward"]
    level: Level | None = None
    split: int | None = None
    back_perturbations: int | None = None
    front_is_frozen: bool = False

    @property
    def name(self) -> str:
        """The arm as text; a BanditState uses it as a key."""
        what = f"level {self.level}" if self.kind == "backprop" else f"split {self.split} x {self.back_perturbations}"
        return f"{what}, frozen front" if self.front_is_frozen else what


class PricedArm(msgspec.Struct, frozen=True):
    """An arm with its price on one device, before any report.

    Attributes:
        arm: the arm.
        cost: forward passes of the whole model per round; gives relative times where none was measured.
        profile_s: seconds of a round's local steps by the device's profile; None: not known.
        left_out: why the device cannot be given the arm; None: it can.
        front_share: share of the price that is the front's, where it is frozen: a device that has kept the activations
            of its rows does not pay it. 0: the front is not frozen.
    """

    arm: Arm
    cost: float
    profile_s: float | None = None
    left_out: str | None = None
    front_share: float = 0.0


class PriceBasis(msgspec.Struct, frozen=True):
    """What the price of every arm of a job depends on, beside the arm and the device.

    Attributes:
        layers: L, the model's transformer layers.
        tokens: tokens of the longest row.
        steps: local steps of a forward-only device per round.
        batch_size: rows per forward-only step.
        rule: rule of a forward-only step; the arm replaces its P2.
        stld: settings of the backprop devices; None: the job has none.
    """

    layers: int
    tokens: int
    steps: int
    batch_size: int
    rule: StepRule
    stld: Stld | None = None


def forward_arms(
    splits: Iterable[int], back_perturbations: Iterable[int], *, front_is_frozen: bool = False
) -> list[Arm]:
    """Return one arm per split and P2, ascending."""
    counts = sorted(set(back_perturbations))
    return [
        Arm("forward", split=split, back_perturbations=p2, front_is_frozen=front_is_frozen)
        for split in sorted(set(splits))
        for p2 in counts
    ]


def price_left(front_share: float, cold: float) -> float:
    """Return the share of a price that is left where the front is run for a share ``cold`` of the rows, 0 to 1."""
    return 1.0 - front_share * (1.0 - cold)


def backprop_arms(levels: Iterable[Level], frozen_split: int | None = None) -> list[Arm]:
    """Return one arm per level, ascending; ``frozen_split``: where the frozen front ends, None: it is trained."""
    frozen = frozen_split is not None
    return [Arm("backprop", level=level, split=frozen_split, front_is_frozen=frozen) for level in ascending(levels)]


def passes(rule: StepRule, back_perturbations: int) -> tuple[int, int]:
    """Return the front and the back passes of one step per row (docs/algorithm.md), without kept activations."""
    p1, p2 = rule.front_perturbations, back_perturbations
    sides = 2 if rule.difference == "central" else 1
    clean = 0 if rule.difference == "central" else 1
    if rule.front_is_frozen:
        return 1, sides * p2 + clean
    if rule.variant == "clean":
        return sides * p1 + 1, sides * (p1 + p2) + clean
    return sides * p1 + clean, sides * p1 * p2 + clean


def price(arm: Arm, basis: PriceBasis, profile: Profile | None) -> PricedArm:
    """Return what an arm costs on a device; ``profile`` is the device's, None: not known."""
    if arm.kind == "backprop":
        assert basis.stld is not None  # noqa: S101 such arms come with [stld]
        assert arm.level is not None  # noqa: S101
        row_cost = forward_passes(arm.level, basis.layers)
        cost = basis.stld.steps * basis.stld.batch_size * row_cost
        front_share = (arm.split or 0) / max(basis.layers, 1) / row_cost if arm.front_is_frozen else 0.0
        graph = None if profile is None else profile.graph("train", level=arm.level)
        if graph is None:
            return PricedArm(arm, cost, front_share=front_share)
        runs = math.ceil(basis.stld.batch_size / basis.stld.most_rows)
        seconds = basis.stld.steps * runs * _sustained_s(graph, profile, basis.stld.most_rows, basis)
        return PricedArm(arm, cost, seconds, front_share=front_share)
    assert arm.split is not None  # noqa: S101
    assert arm.back_perturbations is not None  # noqa: S101
    fronts, backs = passes(basis.rule, arm.back_perturbations)
    share = arm.split / max(basis.layers, 1)
    # The back block contains the head, so it costs something even at the last split.
    front_cost, back_cost = fronts * share, backs * max(1 - share, 0.5 / max(basis.layers, 1))
    cost = basis.steps * basis.batch_size * (front_cost + back_cost)
    frozen = basis.rule.front_is_frozen
    front = None if profile is None else profile.graph("front", split=arm.split)
    back = None if profile is None else profile.graph("back", split=arm.split)
    if front is None or back is None:
        return PricedArm(arm, cost, front_share=front_cost / (front_cost + back_cost) if frozen else 0.0)
    f1, f2 = (_sustained_s(graph, profile, basis.batch_size, basis) for graph in (front, back))
    seconds = fronts * f1 + backs * f2
    front_share = fronts * f1 / seconds if frozen and seconds > 0 else 0.0
    return PricedArm(arm, cost, basis.steps * seconds, front_share=front_share)


def _sustained_s(graph: GraphProfile, profile: Profile | None, rows: int, basis: PriceBasis) -> float:
    """Return the seconds of one run on a board that training has heated up."""
    return latency_s(graph, rows, basis.tokens) * (1.0 if profile is None else profile.slowdown)


def power_w(arm: Arm, profile: Profile | None) -> float | None:
    """Return the largest mean power of an arm's graphs, in watts; None: not measured."""
    if profile is None:
        return None
    if arm.kind == "backprop":
        graphs = [profile.graph("train", level=arm.level)]
    else:
        graphs = [profile.graph("front", split=arm.split), profile.graph("back", split=arm.split)]
    known = [entry.power_w for graph in graphs if graph is not None for entry in graph.latencies]
    return max((power for power in known if power is not None), default=None)


def price_arms(
    arms: Sequence[Arm],
    basis: PriceBasis,
    profile: Profile | None,
    left_out: Mapping[Arm, str],
    most_power_w: float | None = None,
) -> list[PricedArm]:
    """Return the arms of one device with their prices.

    Args:
        arms: the job's arms of the device's kind, backprop or forward.
        basis: what their prices depend on.
        profile: the device's profile; None: not known.
        left_out: arms that the device cannot be given, and why: they do not fit its memory, or it refused them.
        most_power_w: arms that took more power by the profile are left out; None: no limit.
    """
    found = []
    for arm in arms:
        priced = price(arm, basis, profile)
        reason = left_out.get(arm)
        power = power_w(arm, profile)
        if reason is None and most_power_w is not None and power is not None and power > most_power_w:
            reason = f"takes {power:.1f} W, the job allows {most_power_w:.1f} W"
        found.append(priced if reason is None else msgspec.structs.replace(priced, left_out=reason))
    return found


def job_splits(manifest: Manifest, split: int, *, any_split: bool) -> list[int]:
    """Return the splits that the bandit may choose from: all of the bundle, or the job's alone."""
    return list(manifest.splits) if any_split else [split]
