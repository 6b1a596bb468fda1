"""What the forward-only contributions of a round become under ``[robust]``, before devices see any of them.

All of this is done on the server before the round's log is made. Devices replay the log as any other, and need not know
how it was made.
"""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from edge_runtime.forward_only.coefficients import Terms, step_coefficients
from edge_runtime.forward_only.directions import ALL_DEVICES, step_seeds
from edge_runtime.forward_only.replay import mean_square_of
from edge_runtime.protocol.round_log import pack_scalars, unpack_scalars
from server.job.robust import DEFAULT_TRIM_SHARE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edge_runtime.protocol.round_log import RoundLog
    from server.job.robust import Robust


def clip_bound(scalars: Mapping[str, bytes], times: float) -> float | None:
    """Return the bound to which the scalars of a round are clipped; None: most devices send zeros only.

    It is ``times`` × the lower median over devices of the median of the device's absolute scalars. Each device has one
    vote, so a minority can neither raise the bound above those of honest devices nor lower it below them.
    """
    middles = [
        float(np.median(np.abs(np.frombuffer(data, dtype="<f4").astype(np.float64)))) for data in scalars.values()
    ]
    middle = statistics.median_low(middles)
    return times * middle if middle > 0 else None


def clipped(scalars: Mapping[str, bytes], times: float | None) -> dict[str, bytes]:
    """Return the packed scalars of each device, clipped to the round's bound; None: unchanged."""
    bound = None if times is None or not scalars else clip_bound(scalars, times)
    if bound is None:
        return dict(scalars)
    return {
        device: pack_scalars(np.clip(np.frombuffer(data, dtype="<f4"), np.float32(-bound), np.float32(bound)))
        for device, data in scalars.items()
    }


def middle_of(values: Sequence[float], robust: Robust) -> float:
    """Return the trimmed mean or the median of some numbers, the same whatever their order.

    Trimming leaves out at least one number at each end where there are three or more.
    """
    ordered = sorted(values)
    if robust.aggregate == "median":
        return statistics.median(ordered)
    share = DEFAULT_TRIM_SHARE if robust.trim_share is None else robust.trim_share
    cut = min(math.ceil(share * len(ordered)), (len(ordered) - 1) // 2)
    kept = ordered[cut : len(ordered) - cut]
    return math.fsum(kept) / len(kept)


def robust_terms(log: RoundLog, robust: Robust) -> Terms:
    """Return a round's update where every direction gets the middle of the devices' coefficients.

    Args:
        log: the log of a rule with shared directions, with the devices' scalars.
        robust: says which middle.

    Raises:
        ProtocolError: the scalars of a device do not fit the rule.
    """
    states = {device.device: log.mean_square for device in log.devices}
    rows = {
        device.device: unpack_scalars(device.scalars, log.steps, log.rule.scalars_per_step) for device in log.devices
    }
    front: dict[int, float] = {}
    back: dict[int, float] = {}
    for step in range(log.steps):
        made = []
        for name, steps in rows.items():
            coefficients, states[name] = step_coefficients(steps[step], log.rule, states[name])
            made.append(coefficients)
        directions = step_seeds(log.rule, log.job_seed, log.round, ALL_DEVICES, step)
        for total, used, values in (
            (front, directions.front, [coefficients.front for coefficients in made]),
            (back, directions.back, [coefficients.back for coefficients in made]),
        ):
            for seed, of_devices in zip(used, zip(*values, strict=True), strict=True):
                total[seed] = total.get(seed, 0.0) + middle_of(of_devices, robust)
    return Terms(list(front.items()) if log.front_size else [], list(back.items()))


def robust_mean_square(rows: Sequence[Sequence[Sequence[float]]], robust: Robust | None) -> float | None:
    """Return the mean square of a round's scalars, which normalises the next round; None: there are none.

    Where a middle is made of the coefficients, it is made of the devices' mean squares as well: else one device could
    shrink everybody's next step.
    """
    if robust is None or robust.aggregate == "mean":
        return mean_square_of(rows)
    known = [square for square in (mean_square_of([steps]) for steps in rows) if square is not None]
    return middle_of(known, robust) if known else None


def clipped_log(log: RoundLog, robust: Robust | None) -> RoundLog:
    """Return the log of a round with its scalars clipped as the job says."""
    if robust is None or robust.clip_scalars is None:
        return log
    bounded = clipped({device.device: device.scalars for device in log.devices}, robust.clip_scalars)
    devices = [msgspec.structs.replace(device, scalars=bounded[device.device]) for device in log.devices]
    return msgspec.structs.replace(log, devices=devices)
