"""The bandit's policies against each other on simulated traces: virtual seconds to a target loss, and regret.

The fleet consists of synthetic backprop devices. The levels' relative times were measured on x86 with a model of
RoBERTa-base's size (3, 6 and 12 of 12 layers take 0.25, 0.51 and 1 of the full step; 9 layers are interpolated). The
boards' speeds are modelled, from 1 to 6 times as slow; in the scenario ``alike`` all boards are the same. The gains of
the levels are drawn by seed. No model is trained: this benchmark compares choices, not accuracies.

    python -m benchmarks.arm_choice.policies [--seeds 10] [--plot docs/bandit.png]

`make bench-bandit` runs it. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from benchmarks.harness.figures import ratios, spread
from benchmarks.harness.plots import new_panels, save
from benchmarks.harness.provenance import provenance
from edge_runtime.bundle.levels import trained_layers
from server.bandit.arms import Arm, PricedArm
from server.bandit.choices import Candidate
from server.bandit.choose import choose
from server.bandit.options import BanditOptions, Policy
from server.bandit.state import BanditState, Reported, observe_loss, observe_reports

if TYPE_CHECKING:
    from server.bandit.choices import Choice

LEVEL_TIMES = {3: 0.25, 6: 0.51, 9: 0.755, 12: 1.0}
BOARDS = (1.0, 1.5, 3.0, 6.0)
DEVICES = 12
LINK_S = 2.0
"""Seconds that a round spends on the network."""
FULL_S = 10.0
"""Seconds of a round's steps at full depth on the fastest board."""
TARGET = 0.15
"""The loss to reach, as a share of the loss at the start."""
MOST_ROUNDS = 800
SCENARIOS = ("stationary", "drift", "alike")


@dataclass(frozen=True)
class World:
    """A trace: the true figures of each round, which the policies do not know, and the profiles, which they know.

    Attributes:
        pace: true seconds of a round's steps at full depth, (rounds, devices): the board, its profile's error, heat.
        profile: seconds at full depth by the profile, (devices,).
        gain: by level, the share of the loss that a round removes, (rounds,).
        noise: relative error of each evaluation, (rounds,).
    """

    pace: np.ndarray[Any, Any]
    profile: np.ndarray[Any, Any]
    gain: dict[int, np.ndarray[Any, Any]]
    noise: np.ndarray[Any, Any]


def make_world(seed: int, scenario: str) -> World:
    """Draw a trace of a scenario."""
    rng = np.random.Generator(np.random.PCG64([seed, SCENARIOS.index(scenario)]))
    boards = FULL_S * np.array([1.0 if scenario == "alike" else BOARDS[d % len(BOARDS)] for d in range(DEVICES)])
    pace = np.tile(boards * np.exp(0.2 * rng.standard_normal(DEVICES)), (MOST_ROUNDS, 1))
    pace *= np.exp(0.05 * rng.standard_normal(pace.shape))
    bend = np.full(MOST_ROUNDS, rng.uniform(0.4, 1.4))
    if scenario == "drift":
        # Heat slows a third of the devices for 60 rounds. At first shallow levels gain nearly as much as deep ones.
        for device in rng.permutation(DEVICES)[: DEVICES // 3]:
            begin = int(rng.integers(5, 60))
            pace[begin : begin + 60, device] *= rng.uniform(1.5, 3.0)
        turn = int(rng.integers(15, 40))
        bend = np.where(np.arange(MOST_ROUNDS) < turn, rng.uniform(0.2, 0.5), rng.uniform(1.2, 1.8))
    gain = {level: 0.04 * (level / 12) ** bend for level in LEVEL_TIMES}
    return World(pace, boards, gain, 0.004 * rng.standard_normal(MOST_ROUNDS))


def best_levels(world: World, index: int) -> list[int]:
    """Return the oracle's choice: each device's level, so that the true gain per second is largest."""
    times = {level: LINK_S + share * world.pace[index] for level, share in LEVEL_TIMES.items()}
    best: tuple[float, list[int]] = (-1.0, [])
    for length_s in np.unique(np.concatenate(list(times.values()))):
        levels = [max((v for v in LEVEL_TIMES if times[v][d] <= length_s), default=0) for d in range(DEVICES)]
        if 0 in levels:
            continue
        # Gains grow with depth, so the deepest level that fits into the round's length is the best.
        rate = sum(world.gain[level][index] for level in levels) / length_s
        best = max(best, (rate, levels))
    return best[1]


def play(world: World, seed: int, policy: Policy | None = None, fixed: int | None = None) -> list[tuple[float, float]]:
    """Return (virtual seconds, loss) after each round, until the loss reaches the target.

    Args:
        world: the trace.
        seed: seed of the policy.
        policy: the policy that chooses levels.
        fixed: the level that every device has; with neither policy nor level, the oracle chooses.
    """
    rng = np.random.Generator(np.random.PCG64([seed, 7]))
    options = BanditOptions(policy=policy or "uniform")
    arms = {level: Arm("backprop", level=level) for level in LEVEL_TIMES}
    names = [f"device-{device:02}" for device in range(DEVICES)]
    candidates = [
        Candidate(name, 1 / DEVICES, [PricedArm(arms[v], 12 * s, s * world.profile[d]) for v, s in LEVEL_TIMES.items()])
        for d, name in enumerate(names)
    ]
    state = observe_loss(options, BanditState(), None, 1.0)
    loss, now, curve = 1.0, 0.0, [(0.0, 1.0)]
    for index in range(MOST_ROUNDS):
        choices: list[Choice] = []
        if policy is not None:
            state, choices = choose(options, state, candidates, DEVICES, 1e6, now, rng)
            levels = [trained_layers(choice.arm.level or 0) for choice in choices if choice.arm is not None]
        else:
            levels = [fixed] * DEVICES if fixed is not None else best_levels(world, index)
        seconds = [LEVEL_TIMES[level] * float(world.pace[index, d]) for d, level in enumerate(levels)]
        now += LINK_S + max(seconds)
        loss *= 1 - statistics.fmean(float(world.gain[level][index]) for level in levels)
        curve.append((now, loss))
        if loss <= TARGET:
            break
        if policy is not None:
            reports = []
            for choice, spent in zip(choices, seconds, strict=True):
                estimate = choice.estimate
                assert estimate is not None  # noqa: S101 a chosen device has an estimate
                reports.append(
                    Reported(
                        choice.device,
                        estimate.arm,
                        1 / DEVICES,
                        estimate.cost,
                        estimate.base_s,
                        spent,
                        spent + LINK_S,
                        now,
                    )
                )
            state = observe_reports(state, index, reports)
            state = observe_loss(options, state, index, loss * (1 + float(world.noise[index])))
    return curve


def compare(seeds: int) -> dict[str, dict[str, list[list[tuple[float, float]]]]]:
    """Return the curves of all seeds, by scenario and by way to choose: policies, fixed levels and the oracle."""
    ways: dict[str, dict[str, Any]] = {policy: {"policy": policy} for policy in get_args(Policy) if policy != "fixed"}
    ways |= {f"fixed {level}": {"fixed": level} for level in LEVEL_TIMES} | {"oracle": {}}
    found: dict[str, dict[str, list[list[tuple[float, float]]]]] = {}
    for scenario in SCENARIOS:
        found[scenario] = {way: [] for way in ways}
        for seed in range(seeds):
            world = make_world(seed, scenario)
            for way, arguments in ways.items():
                found[scenario][way].append(play(world, seed, **arguments))
            print(f"\r{scenario}: seed {seed + 1} of {seeds} ", end="", file=sys.stderr)
        print(file=sys.stderr)
    return found


def plot(found: dict[str, dict[str, list[list[tuple[float, float]]]]], path: Path) -> None:
    """Draw loss against virtual seconds, a panel per scenario: the median over seeds."""
    figure, panels = new_panels(1, len(found), (6 * len(found), 4.5), share_y=True)
    for axes, (scenario, curves) in zip(panels, found.items(), strict=True):
        grid = np.linspace(0, max(statistics.median(c[-1][0] for c in runs) for runs in curves.values()), 300)
        for number, (way, runs) in enumerate(curves.items()):
            lines = [np.interp(grid, [p[0] for p in c], [p[1] for p in c], right=c[-1][1]) for c in runs]
            style = {"thompson": "-", "oracle": ":"}.get(way, "--" if way.startswith("fixed") else "-.")
            colour = "k" if way == "oracle" else f"C{number}"
            label, width = ("ours", 2.5) if way == "thompson" else (way, 1.2)
            axes.plot(grid, np.median(lines, axis=0), style, color=colour, linewidth=width, label=label)
        axes.set_title(f"{scenario}: median of {len(runs)} seeds, simulated")
        axes.set_xlabel("virtual seconds")
    panels[0].set_ylabel("held-out loss as a share of its start")
    panels[0].legend(fontsize=8)
    save(figure, path, 110)


def main() -> None:
    """Compare, print a table, and one JSON document as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10, help="traces per scenario (default: %(default)s)")
    parser.add_argument("--plot", type=Path, help="write a picture to this file")
    args = parser.parse_args()
    found = compare(args.seeds)
    results: dict[str, Any] = {}
    for scenario, curves in found.items():
        seconds = {way: [c[-1][0] if c[-1][1] <= TARGET else math.inf for c in runs] for way, runs in curves.items()}
        fixed = [[seconds[way][seed] for way in seconds if way.startswith("fixed")] for seed in range(args.seeds)]
        best_fixed, ours = [min(times) for times in fixed], seconds["thompson"]
        suffix = "" if scenario == "stationary" else f"_{scenario}"
        results |= {
            f"full_depth_over_ours{suffix}": ratios(seconds["fixed 12"], ours),
            f"ours_over_best_fixed{suffix}": ratios(ours, best_fixed),
            f"paper_policy_over_ours{suffix}": ratios(seconds["paper"], ours),
        }
        print(f"\n{scenario:12} seconds to {TARGET} of the loss, median (min … max); regret over the oracle, median")
        for way, times in seconds.items():
            regret = statistics.median(t - o for t, o in zip(times, seconds["oracle"], strict=True))
            results[f"{way} s{suffix}"] = spread(times)
            results[f"{way} regret s{suffix}"] = round(regret, 1)
            print(f"{way:12} {statistics.median(times):8.0f}  ({min(times):.0f} … {max(times):.0f})  {regret:8.0f}")
    if args.plot is not None:
        plot(found, args.plot)
    print(json.dumps({"benchmark": "bandit", "seeds": args.seeds, **results, "provenance": provenance()}))


if __name__ == "__main__":
    main()
