"""Chooses the devices of a round fairly, and computes their weights in the average."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from edge_runtime.seeds import cohort_seed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PATIENCE = 2
"""A device is overdue once it has waited this many times the rounds in which every device could have its turn."""


def choose_cohort(
    online: Sequence[str],
    cohort: int,
    over_selection: float,
    job_seed: int,
    round_index: int,
    attempt: int,
    waited: Mapping[str, int] | None = None,
) -> list[str]:
    """Choose the devices of a round at random, except that overdue devices come first.

    A device is overdue once it has waited for PATIENCE × ceil(devices / chosen per round) rounds; among overdue devices
    the longest wait comes first. So a device that is always online is chosen again within longest_wait rounds.

    Args:
        online: names of the devices that are online and can be given something.
        cohort: number of reports wanted; 0: one from every device.
        over_selection: factor by which more devices are offered the round than reports are wanted.
        job_seed: the job's seed.
        round_index: index of the round.
        attempt: number of the attempt; each draws anew.
        waited: by device, rounds since it was last chosen or came online; None: not known.

    Returns:
        Names, sorted.
    """
    names = sorted(online)
    if cohort == 0:
        return names
    wanted = min(len(names), math.ceil(cohort * over_selection))
    waits = waited or {}
    patience = PATIENCE * math.ceil(len(names) / max(wanted, 1))
    overdue = sorted((name for name in names if waits.get(name, 0) >= patience), key=lambda name: -waits[name])[:wanted]
    first = set(overdue)
    others = [name for name in names if name not in first]
    rng = np.random.Generator(np.random.PCG64([cohort_seed(job_seed, round_index), attempt]))
    drawn = [others[index] for index in rng.choice(len(others), size=wanted - len(overdue), replace=False)]
    return sorted(overdue + drawn)


def longest_wait(devices: int, wanted: int) -> int:
    """Return the largest number of rounds in a row in which a device that is always online is not chosen.

    Only devices that have waited as long can come before an overdue device, and each of them only once.
    """
    return (PATIENCE + 1) * math.ceil(devices / max(wanted, 1))


def shares(examples: Mapping[str, int], weighting: str) -> dict[str, float]:
    """Return each device's share of the average, sorted by name: by its number of rows, or equal. They add up to 1."""
    counts = {device: examples[device] if weighting == "examples" else 1 for device in sorted(examples)}
    total = sum(counts.values())
    return {device: count / total for device, count in counts.items()}
