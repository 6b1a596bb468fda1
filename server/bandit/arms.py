"""Arms: how deep a backprop device trains; where a forward-only device splits its work and how often it perturbs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import msgspec

from edge_runtime.protocol.layer_dropout import Stld
from edge_runtime.protocol.profile import latency_s
from edge_runtime.protocol.step_rule import StepRule

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from edge_runtime.bundle.manifest import Manifest
    from edge_runtime.protocol.profile import GraphProfile, Profile

_BACKPROP_PASSES = 3.0  # a forward and a backward pass, in forward passes


class Arm(msgspec.Struct, frozen=True, order=True):
    """One choice: ``backprop`` at a level, or ``forward`` at a split with P2 back directions."""

    kind: Literal["backprop", "forward"]
    level: int | None = None
    split: int | None = None
    back_perturbations: int | None = None

    @property
    def name(self) -> str:
        """How it is shown, and named in a state."""
        if self.kind == "backprop":
            return f"level {self.level}"
        return f"split {self.split} x {self.back_perturbations}"


class Offer(msgspec.Struct, frozen=True):
    """An arm on one device, before anything of it was learned.

    Attributes:
        arm: the arm.
        cost: forward passes of the whole model in a round; relative times follow from it where none was measured.
        profile_s: seconds of a round's steps by the device's profile; None: not known.
        left_out: why the device is not offered it; None: it is.
    """

    arm: Arm
    cost: float
    profile_s: float | None = None
    left_out: str | None = None


class Work(msgspec.Struct, frozen=True):
    """What a job's arms share.

    Attributes:
        layers: L.
        tokens: longest rows.
        steps: local steps of a forward-only device.
        batch_size: rows of such a step.
        rule: its rule; P2 is the arm's.
        stld: what backprop devices do; None: there are none.
    """

    layers: int
    tokens: int
    steps: int
    batch_size: int
    rule: StepRule
    stld: Stld | None = None


def forward_arms(splits: Iterable[int], back_perturbations: Iterable[int]) -> list[Arm]:
    """Return all (split, P2)."""
    counts = sorted(set(back_perturbations))
    return [Arm("forward", split=split, back_perturbations=p2) for split in sorted(set(splits)) for p2 in counts]


def backprop_arms(levels: Iterable[int]) -> list[Arm]:
    """Return all levels."""
    return [Arm("backprop", level=level) for level in sorted(set(levels))]


def passes(rule: StepRule, back_perturbations: int) -> tuple[int, int]:
    """Return the front and back passes of one step (algorithm.md)."""
    p1, p2 = rule.front_perturbations, back_perturbations
    sides = 2 if rule.difference == "central" else 1
    clean = 0 if rule.difference == "central" else 1
    if rule.variant == "clean":
        return sides * p1 + 1, sides * (p1 + p2) + clean
    return sides * p1 + clean, sides * p1 * p2 + clean


def offer(arm: Arm, work: Work, profile: Profile | None) -> Offer:
    """Return what an arm costs on a device by its profile."""
    if arm.kind == "backprop":
        assert work.stld is not None  # noqa: S101 such arms come with [stld]
        assert arm.level is not None  # noqa: S101
        cost = work.stld.steps * work.stld.batch_size * _BACKPROP_PASSES * arm.level / work.layers
        graph = None if profile is None else profile.graph("train", level=arm.level)
        if graph is None:
            return Offer(arm, cost)
        runs = math.ceil(work.stld.batch_size / work.stld.most_rows)
        return Offer(arm, cost, work.stld.steps * runs * _sustained_s(graph, profile, work.stld.most_rows, work))
    assert arm.split is not None  # noqa: S101
    assert arm.back_perturbations is not None  # noqa: S101
    fronts, backs = passes(work.rule, arm.back_perturbations)
    share = arm.split / max(work.layers, 1)
    # The back block holds the head too: it never is for nothing.
    cost = work.steps * work.batch_size * (fronts * share + backs * max(1 - share, 0.5 / max(work.layers, 1)))
    front = None if profile is None else profile.graph("front", split=arm.split)
    back = None if profile is None else profile.graph("back", split=arm.split)
    if front is None or back is None:
        return Offer(arm, cost)
    f1, f2 = (_sustained_s(graph, profile, work.batch_size, work) for graph in (front, back))
    return Offer(arm, cost, work.steps * (fronts * f1 + backs * f2))


def _sustained_s(graph: GraphProfile, profile: Profile | None, rows: int, work: Work) -> float:
    """Return the seconds of a run on a board that is as hot as training makes it."""
    return latency_s(graph, rows, work.tokens) * (1.0 if profile is None else profile.slowdown)


def power_w(arm: Arm, profile: Profile | None) -> float | None:
    """Return the largest mean power of an arm's graphs; None: not measured."""
    if profile is None:
        return None
    if arm.kind == "backprop":
        graphs = [profile.graph("train", level=arm.level)]
    else:
        graphs = [profile.graph("front", split=arm.split), profile.graph("back", split=arm.split)]
    known = [entry.power_w for graph in graphs if graph is not None for entry in graph.latencies]
    return max((power for power in known if power is not None), default=None)


def offers_of(
    arms: Sequence[Arm],
    work: Work,
    profile: Profile | None,
    left_out: Mapping[Arm, str],
    most_power_w: float | None = None,
) -> list[Offer]:
    """Return the arms of one device.

    Args:
        arms: those of the job that the device could take by its kind.
        work: what they share.
        profile: the device's; None: not known.
        left_out: arms that it is not offered, and why: they do not fit its memory, or it refused them.
        most_power_w: arms that took more by the profile are left out; None: none is.
    """
    found = []
    for arm in arms:
        made = offer(arm, work, profile)
        reason = left_out.get(arm)
        power = power_w(arm, profile)
        if reason is None and most_power_w is not None and power is not None and power > most_power_w:
            reason = f"takes {power:.1f} W, the job allows {most_power_w:.1f} W"
        found.append(made if reason is None else msgspec.structs.replace(made, left_out=reason))
    return found


def job_splits(manifest: Manifest, split: int, *, any_split: bool) -> list[int]:
    """Return the splits that may be chosen."""
    return list(manifest.splits) if any_split else [split]
