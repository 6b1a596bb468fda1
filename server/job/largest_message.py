"""The largest message that a job sends or gets: its broker must take it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_runtime.protocol.message_base import ENVELOPE_BYTES
from server.job.job import largest_report_bytes

if TYPE_CHECKING:
    from server.job.job import Job

_OTHER_BYTES = 4096
"""Upper bound of plans, delta reports, announcements and parts of logs; tests hold it."""


def largest_message_bytes(job: Job) -> int:
    """Return an upper bound of the size of a job's messages with their envelopes, in either direction."""
    return max(largest_report_bytes(job), _OTHER_BYTES) + ENVELOPE_BYTES
