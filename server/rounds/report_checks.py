"""Checks a device's report against the plan that it answers, before any of it is used."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from edge_runtime.bundle.levels import kind_of, trained_layers
from edge_runtime.errors import ProtocolError
from edge_runtime.protocol.delta import check_norms, most_bytes, read_delta
from edge_runtime.protocol.reports import DeltaReport, Report, RoundReport
from edge_runtime.protocol.round_log import unpack_scalars
from server.rounds.delta_bounds import check_norm

if TYPE_CHECKING:
    from pathlib import Path

    from edge_runtime.bundle.manifest import Manifest
    from edge_runtime.values import FloatVector
    from server.job.fitted import FittedJob
    from server.rounds.open_round import OpenRound


_HINT = "compare the versions of Covey on device and server; run covey-edge doctor on the device"


def check_report(report: Report, opened: OpenRound, steps: int, adapter_sha256: str, manifest: Manifest) -> None:
    """Check a report against its plan. Decoding has checked the types; check_delta checks the delta itself.

    Raises:
        ProtocolError: the report answers another kind of plan, its scalars or layers do not fit, it is about another
            adapter, or a number is not finite.
    """
    level = opened.plan.levels.get(report.device)
    if isinstance(report, RoundReport) != (level is None):
        raise ProtocolError(
            "the report answers another kind of plan",
            _HINT,
        )
    if isinstance(report, RoundReport):
        unpack_scalars(report.scalars, steps, opened.plan.rule_of(report.device).scalars_per_step)
    else:
        if report.level != level:
            raise ProtocolError(
                f"trained at level {report.level}, the plan says {level}",
                _HINT,
            )
        if report.layers != sorted(set(report.layers)) or report.layers[-1:] >= [manifest.model.layers]:
            raise ProtocolError(
                f"layers {report.layers} of {manifest.model.layers}",
                _HINT,
            )
        below = manifest.model.layers - trained_layers(report.level) if kind_of(report.level) == "top" else 0
        if any(layer < below for layer in report.layers):
            raise ProtocolError(f"layers {report.layers}: level {report.level} trains from layer {below} on", _HINT)
        if report.delta.size_bytes > most_bytes(manifest.parameters):
            raise ProtocolError(
                f"the delta would have {report.delta.size_bytes} bytes, the layout needs at most "
                f"{most_bytes(manifest.parameters)}",
                _HINT,
            )
    if report.adapter_sha256 != adapter_sha256:
        raise ProtocolError(
            f"trained adapter {report.adapter_sha256[:12]}, the round's is {adapter_sha256[:12]}",
            "the device fetches the adapter with its next plan",
        )
    if not math.isfinite(report.loss or 0.0) or not math.isfinite(report.seconds):
        raise ProtocolError(
            "loss or seconds are not finite",
            _HINT,
        )


def check_delta(path: Path, report: DeltaReport, opened: OpenRound, fitted: FittedJob, theta: FloatVector) -> None:
    """Check an uploaded delta; the upload has checked its hash.

    Raises:
        ProtocolError: the delta has other tensors or shapes, values that are not finite, or a norm that the steps
            cannot reach or the job does not allow.
    """
    assert opened.plan.stld is not None  # noqa: S101 check_report found a level in the plan
    manifest, robust = fitted.manifest, fitted.job.robust
    movement = read_delta(path, manifest.parameters, report.layers, manifest.model.layers)
    stld = opened.plan.stld
    check_norms(movement, theta, manifest.parameters, stld.steps, stld.learning_rate, stld.weight_decay)
    check_norm(movement, None if robust is None else robust.max_delta_norm)
