"""The largest message that a job sends or gets: its broker must take it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from server.job.job import Job

_REPORT_OVERHEAD_BYTES = 512
"""Upper bound of a report's size without its scalars."""
_OTHER_BYTES = 4096
"""Upper bound of plans, delta reports, announcements and parts of logs; tests hold it."""


def largest_report_bytes(job: Job) -> int:
    """Return an upper bound of the size of a forward-only round's report, with all that the job may choose."""
    rule, most = job.step, job.step.back_perturbations
    if job.adaptive is not None:
        most = max(most, job.adaptive.most_back_perturbations)
    if job.bandit is not None:
        most = max(job.bandit.back_perturbations)
    rule = msgspec.structs.replace(rule, back_perturbations=most)
    return 4 * job.steps * rule.scalars_per_step + _REPORT_OVERHEAD_BYTES


def largest_message_bytes(job: Job) -> int:
    """Return an upper bound of the size of a job's messages, in either direction."""
    return max(largest_report_bytes(job), _OTHER_BYTES)
