"""The devices as the server sees them: who is there, with which adapter, and who is chosen for a round."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edge_runtime.seeds import cohort_seed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_runtime.protocol import Birth


@dataclass
class Device:
    """One device: its last state, its last birth, the adapter it has shown to have, and what it measured.

    ``refused_level``: the smallest level that it could not hold. None: not known.
    """

    name: str
    state: str = "offline"
    birth: Birth | None = None
    adapter_sha256: str | None = None
    link_bytes_per_s: float | None = None
    replay_parameters_per_s: float | None = None
    refused_level: int | None = None

    @property
    def is_here(self) -> bool:
        """Whether it can be offered work."""
        return self.birth is not None and self.state in ("online", "busy")


def choose_cohort(
    online: Sequence[str], cohort: int, over_selection: float, job_seed: int, round_index: int, attempt: int
) -> list[str]:
    """Choose the devices of a round.

    Args:
        online: names of the devices that are here.
        cohort: how many reports are wanted; 0: from all.
        over_selection: how many times as many devices are offered the round.
        job_seed: the job's seed.
        round_index: index of the round.
        attempt: a new attempt draws anew.

    Returns:
        Names, sorted.
    """
    names = sorted(online)
    if cohort == 0:
        return names
    wanted = min(len(names), math.ceil(cohort * over_selection))
    rng = np.random.Generator(np.random.PCG64([cohort_seed(job_seed, round_index), attempt]))
    return sorted(names[index] for index in rng.choice(len(names), size=wanted, replace=False))
