"""The seeds of a step's directions: from the rule, the device and the step to one seed for each direction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_runtime import seeds

if TYPE_CHECKING:
    from edge_runtime.protocol.step_rule import StepRule

ALL_DEVICES = ""
"""Takes the place of a device's name in the seeds of directions that the whole cohort shares."""


@dataclass(frozen=True)
class StepSeeds:
    """Seeds of a step's directions: ``front[i]``, and ``back`` in the order in which the scalars use them."""

    front: tuple[int, ...]
    back: tuple[int, ...]


def step_seeds(rule: StepRule, job_seed: int, round_index: int, device: str, step: int) -> StepSeeds:
    """Derive the seeds of one step. ``back`` has P1·P2 entries, i before j, in ``nested``, P2 in ``clean``.

    Where the front is frozen, ``front`` is empty and ``back`` has P2 entries in both variants.
    """
    p1, p2 = rule.front_directions, rule.back_perturbations
    outer = p1 if rule.is_nested else 1
    where = (job_seed, round_index, ALL_DEVICES if rule.shared_directions else device, step)
    front = tuple(seeds.front_seed(*where, i) for i in range(p1))
    back = tuple(seeds.back_seed(*where, i, j) for i in range(outer) for j in range(p2))
    if rule.seed_pool is not None:
        front = tuple(seeds.pool_seed(job_seed, seed % rule.seed_pool) for seed in front)
        back = tuple(seeds.pool_seed(job_seed, seed % rule.seed_pool) for seed in back)
    return StepSeeds(front, back)
