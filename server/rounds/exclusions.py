"""The devices that one job excludes, because their contributions were rejected time and again."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from server.fleet.exclusion import excluded
from server.storage.queries import rejections_of

if TYPE_CHECKING:
    from server.job.job import Job
    from server.storage.ledger import Ledger

_LOG = logging.getLogger(__name__)


class Exclusions:
    """The devices that a job excludes; see fleet/exclusion.py.

    Args:
        job: the job.
        ledger: has what became of its offers.

    Attributes:
        reasons: why each excluded device is, by name.
    """

    def __init__(self, job: Job, ledger: Ledger) -> None:
        self._job, self._ledger = job.name, ledger
        self._after = None if job.robust is None else job.robust.quarantine_after
        self.reasons = {} if self._after is None else excluded(rejections_of(ledger, job.name), self._after)

    def note_rejection(self, device: str) -> None:
        """Look whether a device is to be excluded, now that a contribution of it was rejected."""
        if self._after is None or device in self.reasons:
            return
        found = excluded(rejections_of(self._ledger, self._job, device), self._after)
        if found:
            self.reasons |= found
            _LOG.error(
                "%s is excluded from job %s: %s; look at the device, and let it take part in the next job",
                device,
                self._job,
                found[device],
            )
