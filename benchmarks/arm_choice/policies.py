"""The bandit's policies against each other on traces: virtual seconds to a target loss, and regret.

A synthetic fleet of backprop devices: the levels' relative times are those measured on this project's x86 machine (a
RoBERTa-base-size model: 3, 6, 12 of 12 layers take 0.25, 0.51, 1 of the full step; 9 by interpolation), the boards'
speeds are modelled (1 to 6; in ``alike`` all are the same board), the gains of the levels are drawn by seed.
No model is trained here: it compares choices, not accuracies.

    python -m benchmarks.arm_choice.policies [--seeds 10] [--plot docs/bandit.png]
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

from benchmarks.harness.figures import spread
from benchmarks.harness.provenance import provenance
from server.bandit.arms import Arm, Offer
from server.bandit.choices import Candidate
from server.bandit.choose import choose
from server.bandit.options import BanditOptions, Policy
from server.bandit.state import BanditState, Reported, observe_loss, observe_reports

if TYPE_CHECKING:
    from collections.abc import Sequence

LEVEL_TIMES = {3: 0.25, 6: 0.51, 9: 0.755, 12: 1.0}
BOARDS = (1.0, 1.5, 3.0, 6.0)
DEVICES = 12
LINK_S = 2.0
FULL_S = 10.0  # a round's steps at full depth on the quickest board
TARGET = 0.15
MOST_ROUNDS = 800
SCENARIOS = ("stationary", "drift", "alike")


@dataclass(frozen=True)
class World:
    """A trace: what is true in each round, and unknown to the policies.

    Attributes:
        pace: seconds at full depth, (rounds, devices): boards, their faults against the profile, heat.
        profile: seconds at full depth by the profile, (devices,).
        gain: share of the loss that a round at a level takes away, by level, (rounds,).
        noise: of each evaluation, relative, (rounds,).
    """

    pace: np.ndarray[Any, Any]
    profile: np.ndarray[Any, Any]
    gain: dict[int, np.ndarray[Any, Any]]
    noise: np.ndarray[Any, Any]


def make_world(seed: int, scenario: str) -> World:
    """Draw a trace."""
    rng = np.random.Generator(np.random.PCG64([seed, SCENARIOS.index(scenario)]))
    boards = FULL_S * np.array([1.0 if scenario == "alike" else BOARDS[d % len(BOARDS)] for d in range(DEVICES)])
    pace = np.tile(boards * np.exp(0.2 * rng.standard_normal(DEVICES)), (MOST_ROUNDS, 1))
    pace *= np.exp(0.05 * rng.standard_normal(pace.shape))
    bend = np.full(MOST_ROUNDS, rng.uniform(0.4, 1.4))
    if scenario == "drift":
        # Heat: a third of the devices slow down for a while. Gains: shallow levels do at first, later depth counts.
        for device in rng.permutation(DEVICES)[: DEVICES // 3]:
            begin = int(rng.integers(5, 60))
            pace[begin : begin + 60, device] *= rng.uniform(1.5, 3.0)
        turn = int(rng.integers(15, 40))
        bend = np.where(np.arange(MOST_ROUNDS) < turn, rng.uniform(0.2, 0.5), rng.uniform(1.2, 1.8))
    gain = {level: 0.04 * (level / 12) ** bend for level in LEVEL_TIMES}
    return World(pace, boards, gain, 0.004 * rng.standard_normal(MOST_ROUNDS))


def best_levels(world: World, index: int) -> list[int]:
    """Return the levels with the most gain a second, all truths known: the oracle."""
    times = {level: LINK_S + share * world.pace[index] for level, share in LEVEL_TIMES.items()}
    best: tuple[float, list[int]] = (-1.0, [])
    for length_s in np.unique(np.concatenate(list(times.values()))):
        levels = [max((v for v in LEVEL_TIMES if times[v][d] <= length_s), default=0) for d in range(DEVICES)]
        if 0 in levels:
            continue
        # Gains grow with depth here, so the deepest level that fits is the best.
        rate = sum(world.gain[level][index] for level in levels) / length_s
        best = max(best, (rate, levels))
    return best[1]


def play(world: World, seed: int, policy: Policy | None = None, fixed: int | None = None) -> list[tuple[float, float]]:
    """Return (virtual seconds, loss) after each round until the target; neither policy nor level: the oracle."""
    rng = np.random.Generator(np.random.PCG64([seed, 7]))
    options = BanditOptions(policy=policy or "uniform")
    arms = {level: Arm("backprop", level=level) for level in LEVEL_TIMES}
    names = [f"device-{device:02}" for device in range(DEVICES)]
    candidates = [
        Candidate(name, 1 / DEVICES, [Offer(arms[v], 12 * s, s * world.profile[d]) for v, s in LEVEL_TIMES.items()])
        for d, name in enumerate(names)
    ]
    state = observe_loss(options, BanditState(), None, 1.0)
    loss, now, curve = 1.0, 0.0, [(0.0, 1.0)]
    for index in range(MOST_ROUNDS):
        choices = []
        if policy is not None:
            state, choices = choose(options, state, candidates, DEVICES, 1e6, now, rng)
            levels = [choice.arm.level or 0 for choice in choices if choice.arm is not None]
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
                assert estimate is not None  # noqa: S101 it was chosen
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
    """Return the curves of every way to choose, by scenario."""
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


def ratio(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """Return the spread of ratios, seed by seed."""
    return spread([a / b for a, b in zip(above, below, strict=True)])


def plot(found: dict[str, dict[str, list[list[tuple[float, float]]]]], path: Path) -> None:
    """Draw loss against virtual time: the median over seeds."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(found), figsize=(6 * len(found), 4.5), sharey=True)
    for axes, (scenario, curves) in zip(panels, found.items(), strict=True):
        grid = np.linspace(0, max(statistics.median(c[-1][0] for c in runs) for runs in curves.values()), 300)
        for number, (way, runs) in enumerate(curves.items()):
            lines = [np.interp(grid, [p[0] for p in c], [p[1] for p in c], right=c[-1][1]) for c in runs]
            style = {"thompson": "-", "oracle": "k:"}.get(way, "--" if way.startswith("fixed") else "-.")
            colour = {} if way == "oracle" else {"color": f"C{number}"}
            label, width = ("ours", 2.5) if way == "thompson" else (way, 1.2)
            axes.plot(grid, np.median(lines, axis=0), style, linewidth=width, label=label, **colour)
        axes.set_title(f"{scenario}: median of {len(runs)} seeds, simulated")
        axes.set_xlabel("virtual seconds")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("held-out loss, of its start")
    panels[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Compare, print a table, and one JSON document as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--plot", type=Path, help="write a picture")
    args = parser.parse_args()
    found = compare(args.seeds)
    results: dict[str, Any] = {}
    for scenario, curves in found.items():
        seconds = {way: [c[-1][0] if c[-1][1] <= TARGET else math.inf for c in runs] for way, runs in curves.items()}
        fixed = [[seconds[way][seed] for way in seconds if way.startswith("fixed")] for seed in range(args.seeds)]
        best_fixed, ours = [min(times) for times in fixed], seconds["thompson"]
        suffix = "" if scenario == "stationary" else f"_{scenario}"
        results |= {
            f"full_depth_over_ours{suffix}": ratio(seconds["fixed 12"], ours),
            f"ours_over_best_fixed{suffix}": ratio(ours, best_fixed),
            f"paper_policy_over_ours{suffix}": ratio(seconds["paper"], ours),
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
