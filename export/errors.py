"""Errors of the export side, beside those it shares with the device (edge_runtime.errors).

CoveyError
└── ExportError    exit code 10   a model, task or option that cannot be exported
"""

from __future__ import annotations

from edge_runtime.errors import CoveyError


class ExportError(CoveyError):
    """A model, a task or an option that cannot be exported."""

    exit_code = 10
    subject = "export"
