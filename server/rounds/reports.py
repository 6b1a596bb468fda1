"""Takes a device's report: judges it, checks it, asks for its delta, and records it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from msgspec import UNSET

from edge_runtime.bundle.levels import rank
from edge_runtime.errors import ProtocolError, TrainingError
from edge_runtime.protocol.reports import PlanRefused, Report, ReportAck, RoundReport
from server.planning.feedback import Feedback, ReportAccepted
from server.rounds import state_machine
from server.rounds.report_checks import check_delta, check_report

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.fleet.devices import Device
    from server.job.fitted import FittedJob
    from server.rounds.exclusions import Exclusions
    from server.rounds.open_round import OpenRound
    from server.storage.adapters import AdapterChain
    from server.web.uploads import Uploads

_LOG = logging.getLogger(__name__)


def _cold(report: Report) -> float | None:
    """Return the share of a report's rows for which a frozen front was run; None: it does not say."""
    if report.front_hits is UNSET or report.front_misses is UNSET:
        return None
    rows = report.front_hits + report.front_misses
    return report.front_misses / rows if rows else None


class Reports:
    """Takes the reports of one job.

    Args:
        fitted: the job and its bundle.
        chain: the job's adapters.
        uploads: the deltas that devices may send.
        exclusions: the devices that the job excludes.
        learn: is told of each report that was taken.
    """

    def __init__(
        self,
        fitted: FittedJob,
        chain: AdapterChain,
        uploads: Uploads,
        exclusions: Exclusions,
        learn: Callable[[Feedback], None],
    ) -> None:
        self._fitted = fitted
        self._chain = chain
        self._uploads = uploads
        self._exclusions = exclusions
        self._learn = learn

    def take(self, device: Device, opened: OpenRound | None, report: Report, size_bytes: int, now: float) -> ReportAck:
        """Take a report, and return the answer to it; ``upload`` asks the device for its delta first.

        Args:
            device: the device that sent it.
            opened: the open round; None: there is none.
            report: the report.
            size_bytes: size of its message.
            now: seconds of the server's clock.
        """
        outcome: str = "late" if report.round < len(self._chain.closed) else "unknown"
        reason = ""
        if opened is not None:
            outcome = state_machine.judge(opened.state, device.name, report.round, report.attempt, now)
            excluded = self._exclusions.reasons.get(device.name)
            if outcome == "taken" and excluded is not None:
                outcome, reason = "invalid", f"excluded from this job: {excluded}"
            if outcome == "taken":
                try:
                    outcome = self._check(opened, report)
                except ProtocolError as error:
                    outcome, reason = "invalid", error.what
                    self._reject(opened, report, error.what)
            if outcome == "taken":
                device.link_bytes_per_s = report.link_bytes_per_s
                device.replay_parameters_per_s = report.replay_parameters_per_s
                opened.record(device.name, report, size_bytes)
                self._learn(ReportAccepted(device.name, report.seconds, now, _cold(report)))
        return ReportAck(
            job=report.job,
            round=report.round,
            attempt=report.attempt,
            outcome=outcome,  # type: ignore[arg-type]
            reason=reason,
        )

    def _reject(self, opened: OpenRound, report: Report, reason: str) -> None:
        _LOG.warning(
            "rejected the report of %s on round %d of job %s: %s", report.device, report.round, report.job, reason
        )
        opened.reject(report.device, reason)
        self._exclusions.note_rejection(report.device)

    def _check(self, opened: OpenRound, report: Report) -> str:
        """Return ``taken``, or ``upload`` where the delta has not been sent yet; raises ProtocolError."""
        manifest, uploads = self._fitted.manifest, self._uploads
        check_report(report, opened, self._fitted.job.steps, self._chain.sha256, manifest)
        if isinstance(report, RoundReport):
            return "taken"
        path = uploads.blobs.here(report.delta.sha256)  # what another server has taken comes here when it is asked for
        if path is None:
            uploads.expect(report.delta, report.job, report.device)
            return "upload"
        try:
            check_delta(path, report, opened, self._fitted, self._chain.theta)
        except ProtocolError:
            # Any device may announce any hash: a delta that was taken from another one stays.
            if report.delta.sha256 not in {taken.sha256 for taken in opened.deltas().values()}:
                uploads.blobs.remove(report.delta.sha256)
            raise
        return "taken"

    def note_refusal(self, device: Device, opened: OpenRound, refused: PlanRefused) -> bool:
        """Remember that a level does not fit the device; return whether its next plan has a smaller one."""
        level = opened.plan.levels.get(device.name)
        if level is None or refused.code != TrainingError.exit_code:
            return False
        is_new = device.refused_level is None or rank(level) < rank(
            device.refused_level
        )  # else the job gives it no smaller one
        device.refused_level = min(level, device.refused_level or level, key=rank)
        return is_new
