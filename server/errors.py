"""Errors of the server, beside those it shares with the device (edge_runtime.errors).

CoveyError
└── JobError    exit code 11   a job that cannot start, go on or be found
"""

from __future__ import annotations

from edge_runtime.errors import CoveyError


class JobError(CoveyError):
    """A job cannot start, go on or be found."""

    exit_code = 11
    subject = "job"
