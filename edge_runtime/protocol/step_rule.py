"""The rule of a step: how it perturbs, and how its scalars become an update. One set of switches for every method.

A method of the literature is a combination of these switches (server/job); seeds, messages, engine and replay
are the same for all of them. MeZO's whole-network direction is a front direction with one back direction: P2 = 1.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from edge_runtime.bundle.base import DEFAULT_EPS
from edge_runtime.errors import ConfigError

MAX_PERTURBATIONS = 256
MAX_SEED_POOL = 1 << 20


class StepRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a step perturbs, and how its scalars become an update.

    Attributes:
        variant: ``nested`` or ``clean``; see forward_only/step.py.
        difference: ``central`` (two losses per scalar) or ``forward`` (one loss per scalar, and one clean loss
            per step).
        front_perturbations: P1.
        back_perturbations: P2: per front direction in ``nested``, in total in ``clean``.
        eps: scale of a perturbation.
        learning_rate: scale of an update; with a normalisation, the scale of an update whose scalars have size 1.
        leave_one_out: subtract the mean of the other scalars from each back scalar; needs P2 of 2 or more.
        normalize: ``rms`` divides by a running root mean square of the scalars, ``std`` by the standard deviation of
            the step's own scalars (needs 2 or more), ``none`` does not.
        shared_directions: whether every device of a round uses the same directions, so that the log does not grow with
            the cohort.
        seed_pool: directions come from a pool of this many seeds; None: every direction is new.
    """

    variant: Literal["nested", "clean"] = "nested"
    difference: Literal["central", "forward"] = "central"
    front_perturbations: Annotated[int, msgspec.Meta(ge=1, le=MAX_PERTURBATIONS)] = 1
    back_perturbations: Annotated[int, msgspec.Meta(ge=1, le=MAX_PERTURBATIONS)] = 8
    eps: Annotated[float, msgspec.Meta(gt=0, le=1)] = DEFAULT_EPS
    learning_rate: Annotated[float, msgspec.Meta(gt=0, le=1e3)] = 1e-2
    leave_one_out: bool = False
    normalize: Literal["none", "rms", "std"] = "rms"
    shared_directions: bool = False
    seed_pool: Annotated[int, msgspec.Meta(ge=1, le=MAX_SEED_POOL)] | None = None

    @property
    def back_directions(self) -> int:
        """Number of back directions of a step."""
        return self.back_perturbations * (self.front_perturbations if self.variant == "nested" else 1)

    @property
    def scalars_per_step(self) -> int:
        """Number of scalars that one step reports."""
        return self.back_directions + (self.front_perturbations if self.variant == "clean" else 0)

    @property
    def merges_devices(self) -> bool:
        """Whether directions recur within a round, so that its log is shorter than the devices' scalars."""
        return self.shared_directions or self.seed_pool is not None


def rule_with(rule: StepRule, back_perturbations: int | None) -> StepRule:
    """Return the rule with another P2; None: return it unchanged."""
    if back_perturbations is None or back_perturbations == rule.back_perturbations:
        return rule
    return msgspec.structs.replace(rule, back_perturbations=back_perturbations)


def check_rule(rule: StepRule) -> None:
    """Check what the types cannot express.

    Raises:
        ConfigError: leave-one-out or ``std`` with fewer scalars than it needs to compare.
    """
    if rule.leave_one_out and (rule.variant == "clean" or rule.back_perturbations < 2):
        raise ConfigError(
            'leave_one_out needs variant = "nested" and back_perturbations of 2 or more',
            "change the job's [step]",
        )
    if rule.normalize == "std" and rule.scalars_per_step < 2:
        raise ConfigError(
            'normalize = "std" needs 2 or more scalars a step',
            "raise front_perturbations or back_perturbations in the job's [step]",
        )
