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
SWITCHES = ("keep_directions", "curvature", "sign_momentum")
"""Fields of a rule that are left out where they are not used, so that older devices can read it."""


class Curvature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A diagonal preconditioner that server and devices rebuild from the replayed updates; see moment.py.

    Attributes:
        decay: share of the running mean of squares that a round leaves as it is.
        floor: added to the mean square, which is near 1 for a parameter of which no signal is seen: the larger, the
            nearer all parameters stay to each other.
    """

    decay: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.9
    floor: Annotated[float, msgspec.Meta(gt=0, le=1e3)] = 1.0


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
        keep_directions: of a step's scalars only this many count, those with the largest absolute values; left out: all
            of them.
        curvature: directions and updates are scaled by a preconditioner; left out: they are not.
        sign_momentum: a round moves every parameter equally far, by the sign of a running mean of the rounds' updates,
            of which a round leaves this share as it is; left out: by the round's update itself.
        front: ``frozen``: the front block has no directions and stays as it is, P1 and ``leave_one_out`` do not count,
            and P2 back directions are taken around its one activation; left out: it is trained.
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
    keep_directions: Annotated[int, msgspec.Meta(ge=1)] | msgspec.UnsetType = msgspec.UNSET
    curvature: Curvature | msgspec.UnsetType = msgspec.UNSET
    sign_momentum: Annotated[float, msgspec.Meta(ge=0, lt=1)] | msgspec.UnsetType = msgspec.UNSET
    front: Literal["frozen"] | msgspec.UnsetType = msgspec.UNSET

    @property
    def front_is_frozen(self) -> bool:
        """Whether the front block has no directions."""
        return self.front == "frozen"

    @property
    def is_nested(self) -> bool:
        """Whether back directions belong to front directions."""
        return self.variant == "nested" and not self.front_is_frozen

    @property
    def front_directions(self) -> int:
        """Number of front directions of a step: P1, or 0 where the front is frozen."""
        return 0 if self.front_is_frozen else self.front_perturbations

    @property
    def back_directions(self) -> int:
        """Number of back directions of a step."""
        return self.back_perturbations * (self.front_perturbations if self.is_nested else 1)

    @property
    def scalars_per_step(self) -> int:
        """Number of scalars that one step reports."""
        return self.back_directions + (0 if self.is_nested else self.front_directions)

    @property
    def merges_devices(self) -> bool:
        """Whether directions recur within a round, so that its log is shorter than the devices' scalars."""
        return self.shared_directions or self.seed_pool is not None

    @property
    def keeps_moment(self) -> bool:
        """Whether a round also needs the moment that the rounds before it have left; see forward_only/moment.py."""
        return self.curvature is not msgspec.UNSET or self.sign_momentum is not msgspec.UNSET

    @property
    def switches(self) -> list[str]:
        """Names of the switches in use that a device may be too old for; Birth.methods says which a device knows."""
        return [name for name in SWITCHES if getattr(self, name) is not msgspec.UNSET]


def rule_with(rule: StepRule, back_perturbations: int | None) -> StepRule:
    """Return the rule with another P2; None: return it unchanged."""
    if back_perturbations is None or back_perturbations == rule.back_perturbations:
        return rule
    return msgspec.structs.replace(rule, back_perturbations=back_perturbations)


def check_rule(rule: StepRule) -> None:
    """Check what the types cannot express.

    Raises:
        ConfigError: leave-one-out, ``std`` or keep_directions with fewer scalars than it needs to compare; two switches
            that exclude each other.
    """
    if rule.leave_one_out and (rule.variant == "clean" or rule.back_perturbations < 2):
        raise ConfigError(
            'leave_one_out needs variant = "nested" and back_perturbations of 2 or more',
            "change the job's [step]",
        )
    if rule.normalize == "std" and rule.scalars_per_step < 2:
        raise ConfigError(
            'normalize = "std" needs 2 or more scalars a step'
            + (", and a frozen front gives only those of the back" if rule.front_is_frozen else ""),
            "raise front_perturbations or back_perturbations in the job's [step]",
        )
    if rule.keep_directions is not msgspec.UNSET:
        if rule.keep_directions > rule.scalars_per_step:
            raise ConfigError(
                f"keep_directions = {rule.keep_directions}, and a step has only {rule.scalars_per_step} scalars",
                "lower keep_directions, or raise front_perturbations or back_perturbations in the job's [step]",
            )
        if rule.leave_one_out or rule.variant == "clean":
            raise ConfigError(
                'keep_directions needs variant = "nested" and no leave_one_out', "leave one of them out of [step]"
            )
    if rule.curvature is not msgspec.UNSET and rule.sign_momentum is not msgspec.UNSET:
        raise ConfigError(
            "curvature and sign_momentum each keep a moment, and a job has only one",
            "leave one of them out of the job's [step]",
        )
