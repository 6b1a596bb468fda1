"""Devices that are too old for a job or its bundle: they are offered nothing, and are told why."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from edge_runtime.bundle.levels import TOP_LEVELS, kind_of
from edge_runtime.bundle.manifest import Runtime
from edge_runtime.bundle.needs import advice, unmet_needs
from edge_runtime.protocol.messages import encode_message
from edge_runtime.protocol.presence import FROZEN_FRONT, FROZEN_TRAINING
from edge_runtime.protocol.side_messages import TooOld
from edge_runtime.protocol.topics import topic_for

if TYPE_CHECKING:
    from edge_runtime.bundle.manifest import Manifest
    from edge_runtime.network.transport import Transport
    from edge_runtime.protocol.presence import Birth
    from edge_runtime.protocol.step_rule import StepRule
    from server.fleet.devices import Device
    from server.job.fitted import FittedJob
    from server.job.job import Job
    from server.rounds.roster import Roster


class LeastVersions:
    """Judges the devices of one job by what they have announced.

    Args:
        fitted: the job and its bundle.
        roster: the fleet's devices.
        transport: the server's connection to the broker.
    """

    def __init__(self, fitted: FittedJob, roster: Roster, transport: Transport) -> None:
        self._fitted, self._roster, self._transport = fitted, roster, transport
        front = _methods_of_front(fitted.job)
        self._judged = " ".join([fitted.bundle_sha256, *fitted.job.step.switches, *front])

    def judge(self, device: Device) -> None:
        """Enter whether a device is too old for the bundle, and tell it, once for each of its announcements.

        One that has not answered this epoch's hello is judged when it does: it would not hear.
        """
        birth, sha256, rule = device.birth, self._fitted.bundle_sha256, self._fitted.job.step
        if birth is None or not device.is_here:
            return
        if device.judged is not None and device.judged[1] is birth and device.judged[0] == self._judged:
            return
        reason = why_too_old(self._fitted.manifest, birth, rule) or why_no_frozen_front(self._fitted.job, birth)
        self._roster.is_too_old(device, reason)
        device.judged = (self._judged, birth)
        if reason is not None:
            told = TooOld(job=self._fitted.job.name, bundle_sha256=sha256, reason=reason)
            self._transport.publish(topic_for(self._roster.fleet, device.name, "plan"), encode_message(told))


def why_too_old(manifest: Manifest, birth: Birth, rule: StepRule) -> str | None:
    """Return what of a device is too old for a bundle or a job's rule, and what to do; None: nothing is known to be."""
    unknown = [name for name in rule.switches if name not in birth.methods]
    if unknown:
        return (
            f"covey {birth.covey_version} on the device does not know {', '.join(unknown)} of the job's [step]\n"
            "  what to do: update covey on the device, or leave that out of the job"
        )
    top = next((level for level in manifest.levels if kind_of(level) == "top"), None)
    if top is not None and TOP_LEVELS not in birth.methods:
        return (
            f"covey {birth.covey_version} on the device cannot read a bundle with level {top}\n"
            "  what to do: update covey on the device; or use a bundle exported without top levels"
        )
    if manifest.base is not None and TOP_LEVELS not in birth.methods:  # both came with version 4 of the manifest
        return (
            f"covey {birth.covey_version} on the device cannot read a bundle whose base is quantised "
            f"({manifest.base.kind})\n"
            "  what to do: update covey on the device; or use a bundle exported without --base"
        )
    for runtime in get_args(Runtime):
        if any(name == runtime or name.startswith(f"{runtime}-") for name in birth.runtimes):
            unmet = unmet_needs(manifest.needs, runtime, birth.runtimes)
            return f"{'; '.join(map(str, unmet))}\n  what to do: {advice(unmet)}"[:2000] if unmet else None
    return None


def _methods_of_front(job: Job) -> list[str]:
    """Return what a device must list among its methods for the front of a job."""
    if not job.frozen_rounds:
        return []
    return [FROZEN_FRONT] if job.stld is None else [FROZEN_FRONT, FROZEN_TRAINING]


def why_no_frozen_front(job: Job, birth: Birth) -> str | None:
    """Return that a device does not know a job's frozen front, and what to do; None: it does, or the job has none."""
    if all(method in birth.methods for method in _methods_of_front(job)):
        return None
    beside = "" if job.stld is None or FROZEN_FRONT not in birth.methods else " beside [stld]"
    return (
        f'the job has front = "{job.front}"{beside}, which Covey {birth.covey_version} does not know\n'
        "  what to do: install a newer version of Covey on the device"
    )
