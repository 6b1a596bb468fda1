"""``[robust]`` of job.toml: what a job does about devices that send wrong contributions; docs/robust.md explains it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from edge_runtime.errors import ConfigError

if TYPE_CHECKING:
    from edge_runtime.protocol.step_rule import StepRule

DEFAULT_TRIM_SHARE = 0.2
FEWEST_TO_OUTVOTE = 3
"""With fewer contributions than this, neither trimming nor a median can tell which one is wrong."""


class Robust(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a job does about devices that send wrong contributions. None: nothing.

    Attributes:
        clip_scalars: forward-only scalars are clipped to ± this many times the round's median absolute scalar.
        aggregate: what is made of the devices' coefficients of each shared direction: their ``mean``, their ``trimmed``
            mean, or their ``median``.
        trim_share: share of the devices that is left out at each end for ``trimmed``; None: 0.2.
        max_delta_norm: a delta whose Euclidean norm is larger is rejected.
        max_delta_norm_ratio: a delta whose root mean square is above this many times the round's median is scaled down
            to that bound.
        max_examples: number of rows for which one device counts at most.
        quarantine_after: after this many rejected contributions in a row, a device is excluded from the job.
        compare_paths: whether forward-only devices with directions of their own are compared with each other, which
            replays each device once more. Devices that share directions, and deltas, are always compared.
    """

    clip_scalars: Annotated[float, msgspec.Meta(ge=1, le=1e6)] | None = None
    aggregate: Literal["mean", "trimmed", "median"] = "mean"
    trim_share: Annotated[float, msgspec.Meta(gt=0, lt=0.5)] | None = None
    max_delta_norm: Annotated[float, msgspec.Meta(gt=0, le=1e9)] | None = None
    max_delta_norm_ratio: Annotated[float, msgspec.Meta(ge=1, le=1e6)] | None = None
    max_examples: Annotated[int, msgspec.Meta(ge=1, le=2**40)] | None = None
    quarantine_after: Annotated[int, msgspec.Meta(ge=1, le=1000)] | None = None
    compare_paths: bool = False

    def counted_examples(self, examples: int) -> int:
        """Return the number of rows for which a device counts that says it has ``examples``."""
        return examples if self.max_examples is None else min(examples, self.max_examples)


def check_robust(
    path: str, robust: Robust, step: StepRule, *, weighting: str, min_reports: int, backpropagates: bool
) -> None:
    """Check that every option of ``[robust]`` can do something in the job.

    Args:
        path: where the job is from.
        robust: its options.
        step: its rule.
        weighting: its weighting.
        min_reports: the fewest reports of a round.
        backpropagates: whether it has [stld].

    Raises:
        ConfigError: nothing is turned on, or an option needs something else that the job does not have.
    """
    where = f"{path}: [robust]"
    if robust == Robust():
        raise ConfigError(f"{where} turns nothing on", "set one of its options (docs/robust.md), or leave it out")
    if robust.trim_share is not None and robust.aggregate != "trimmed":
        raise ConfigError(
            f'{where} has trim_share with aggregate = "{robust.aggregate}"',
            'set aggregate = "trimmed", or leave it out',
        )
    if robust.aggregate != "mean":
        _check_outvoting(where, robust.aggregate, step, weighting, min_reports)
    deltas = {"max_delta_norm": robust.max_delta_norm, "max_delta_norm_ratio": robust.max_delta_norm_ratio}
    for name, value in deltas.items():
        if value is not None and not backpropagates:
            raise ConfigError(
                f"{where} {name} bounds deltas, and without [stld] no device sends any", f"leave {name} out"
            )
    if robust.max_examples is not None and weighting == "uniform":
        raise ConfigError(
            f'{where} max_examples does nothing with weighting = "uniform": all devices count alike',
            "leave max_examples out",
        )
    if robust.compare_paths and step.merges_devices:
        raise ConfigError(
            f"{where} compare_paths is for devices with directions of their own; here they are always compared",
            "leave compare_paths out",
        )


def _check_outvoting(where: str, aggregate: str, step: StepRule, weighting: str, min_reports: int) -> None:
    if not step.shared_directions:
        raise ConfigError(
            f'{where} aggregate = "{aggregate}" compares devices direction by direction, and here each has its own',
            "set shared_directions = true in [step]; or leave aggregate out, and set clip_scalars",
        )
    if weighting != "uniform":
        raise ConfigError(
            f'{where} aggregate = "{aggregate}" counts every device once: a device says itself how many rows it has',
            'set weighting = "uniform"',
        )
    if min_reports < FEWEST_TO_OUTVOTE:
        raise ConfigError(
            f'{where} aggregate = "{aggregate}" can outvote nobody among fewer than {FEWEST_TO_OUTVOTE} reports',
            f"set min_reports to {FEWEST_TO_OUTVOTE} or more",
        )
