"""Chooses the devices of a round, fairly, and their weights in the average."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from edge_runtime.seeds import cohort_seed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PATIENCE = 2


def choose_cohort(
    online: Sequence[str],
    cohort: int,
    over_selection: float,
    job_seed: int,
    round_index: int,
    attempt: int,
    waited: Mapping[str, int] | None = None,
) -> list[str]:
    """Choose the devices of a round: at random, but nobody waits for ever.

    Devices that have waited for PATIENCE times as many rounds as it takes to have everybody once go first, the longest
    wait before the others. So a device that is always here is chosen again within longest_wait rounds.

    Args:
        online: names of the devices that are here and can be given work.
        cohort: how many reports are wanted; 0: from all.
        over_selection: how many times as many devices are offered the round.
        job_seed: the job's seed.
        round_index: index of the round.
        attempt: a new attempt draws anew.
        waited: rounds since each device was last chosen, or came; None: not known.

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
    """Return how many rounds in a row a device that is always here can go unchosen, at most.

    Once a device is overdue, only those that have waited as long can go before it, each of them once.
    """
    return (PATIENCE + 1) * math.ceil(devices / max(wanted, 1))


def shares(examples: Mapping[str, int], weighting: str) -> dict[str, float]:
    """Return each device's share, in the order of the names; they add up to 1."""
    counts = {device: examples[device] if weighting == "examples" else 1 for device in sorted(examples)}
    total = sum(counts.values())
    return {device: count / total for device, count in counts.items()}
