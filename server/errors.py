"""Errors of the server, beside those that it shares with the device (edge_runtime.errors).

CoveyError
├── JobError       exit code 11   a job that cannot start or continue, or does not exist; so RolloutError for rollouts
├── BlobsAwayError            8   a StorageError that may end by itself
└── RemoteFaultError         70   a fault of Covey in another process, which has answered with it
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edge_runtime.errors import ConfigError, CoveyError, FaultError, NetworkError, StorageError

if TYPE_CHECKING:
    from collections.abc import Mapping


class JobError(CoveyError):
    """A job cannot start or continue, or does not exist."""

    exit_code = 11
    subject = "job"


class NoSuchJobError(JobError):
    """There is no such job.

    Args:
        name: the name that was asked for.
    """

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no job {name}", "see: covey job list")


class JobEndedError(JobError):
    """A job that was followed has ended, and is not finished.

    Args:
        ended: its last event: ``job``, ``state`` and ``reason``.
    """

    def __init__(self, ended: Mapping[str, Any]) -> None:
        reason = f": {ended['reason']}" if ended["reason"] else ""
        look = f"see: covey job show {ended['job']}"
        goes_on = "" if ended["state"] == "deleted" else f"; covey job resume {ended['job']} goes on with it"
        super().__init__(f"job {ended['job']} is {ended['state']}{reason}", look + goes_on)
        self.details = ended


class BlobsAwayError(StorageError):
    """What has the blobs does not answer, or says that it has a trouble: it may do what it is asked for later."""


class RolloutError(JobError):
    """A rollout cannot start or continue, or does not exist."""


class ChangedError(JobError):
    """Another operator has changed a job, a device or a rollout since the asker has looked at it."""


class NoSuchDeviceError(ConfigError):
    """There is no such device.

    Args:
        fleet: name of the fleet.
        name: the name that was asked for.
    """

    def __init__(self, fleet: str, name: str) -> None:
        super().__init__(f"fleet {fleet} has no device {name}", "see: covey device list")


class ToldToStopError(NetworkError):
    """The command is told to stop while it waits for other processes: what it was doing has not failed."""


class RemoteFaultError(CoveyError):
    """A fault of Covey in another process, which has said it in its answer."""

    exit_code = FaultError.exit_code
    subject = FaultError.subject


def error_of(code: int, what: str, hint: str) -> CoveyError:
    """Return the error that another process has answered, by its exit code."""
    kinds: list[type[CoveyError]] = [*CoveyError.__subclasses__(), JobError, RemoteFaultError]
    return {kind.exit_code: kind for kind in kinds}.get(code, CoveyError)(what, hint)
