"""What the coordinator does with a report: judge it, check it, ask for its delta, record it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_runtime.errors import ProtocolError, TrainingError
from edge_runtime.protocol.messages import PlanRefused, Report, ReportAck, RoundReport
from server.rounds import state_machine
from server.rounds.report_checks import check_delta, check_report

if TYPE_CHECKING:
    from server.fleet.devices import Device
    from server.planning.chooser import Chooser
    from server.rounds.open_round import Offers
    from server.rounds.setting import Setting
    from server.storage.adapters import AdapterChain


class Reports:
    """Takes reports of one job.

    Args:
        setting: what the job runs in.
        chain: the job's adapters.
        chooser: told how long each took.
    """

    def __init__(self, setting: Setting, chain: AdapterChain, chooser: Chooser) -> None:
        self._setting = setting
        self._chooser = chooser
        self._chain = chain

    def take(self, device: Device, offers: Offers | None, report: Report, size_bytes: int) -> ReportAck:
        """Take a report, or say why not; ``upload`` asks for the delta first.

        Args:
            device: who sent it.
            offers: the open round; None: there is none.
            report: the report.
            size_bytes: size of the message.
        """
        outcome: str = "late" if report.round < len(self._chain.closed) else "unknown"
        reason = ""
        if offers is not None:
            now = self._setting.clock()
            outcome = state_machine.judge(offers.state, device.name, report.round, report.attempt, now)
            if outcome == "taken":
                try:
                    outcome = self._check(offers, report)
                except ProtocolError as error:
                    outcome, reason = "invalid", error.what
                    offers.refuse(device.name, error.what)
            if outcome == "taken":
                device.link_bytes_per_s = report.link_bytes_per_s
                device.replay_parameters_per_s = report.replay_parameters_per_s
                offers.record(device.name, report, size_bytes)
                self._chooser.reported(device.name, report, now)
        return ReportAck(
            job=report.job,
            round=report.round,
            attempt=report.attempt,
            outcome=outcome,  # type: ignore[arg-type]
            reason=reason,
        )

    def _check(self, offers: Offers, report: Report) -> str:
        """Return ``taken``, or ``upload`` where the delta is still to come; raises ProtocolError."""
        manifest, uploads = self._setting.fitted.manifest, self._setting.uploads
        check_report(report, offers, self._setting.fitted.job.steps, self._chain.sha256, manifest)
        if isinstance(report, RoundReport):
            return "taken"
        path = uploads.blobs.path(report.delta.sha256)
        if path is None:
            uploads.expect(report.delta)
            return "upload"
        try:
            check_delta(path, report, offers, manifest, self._chain.theta)
        except ProtocolError:
            uploads.blobs.remove(report.delta.sha256)
            raise
        return "taken"

    def note_refusal(self, device: Device, offers: Offers, refused: PlanRefused) -> None:
        """Remember a level that a device cannot hold, so that its next plan has a smaller one."""
        level = offers.plan.levels.get(device.name)
        if level is not None and refused.code == TrainingError.exit_code:
            device.refused_level = min(level, device.refused_level or level)
