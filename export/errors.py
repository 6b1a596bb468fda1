"""Errors of the export side, beside those that it shares with the device (edge_runtime.errors).

CoveyError
└── ExportError    exit code 10   a model, task or option that covey export cannot handle
"""

from __future__ import annotations

from edge_runtime.errors import CoveyError

REPORT_HINT = "report the model's name, the command and the output of `pip freeze`"
"""What to do about a failure that no option of ``covey export`` avoids."""


class ExportError(CoveyError):
    """A model, a task or an option that ``covey export`` cannot handle."""

    exit_code = 10
    subject = "export"
