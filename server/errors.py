"""Errors of the server, beside those that it shares with the device (edge_runtime.errors).

CoveyError
└── JobError    exit code 11   a job that cannot start or continue, or does not exist
"""

from __future__ import annotations

from edge_runtime.errors import CoveyError


class JobError(CoveyError):
    """A job cannot start or continue, or does not exist."""

    exit_code = 11
    subject = "job"
