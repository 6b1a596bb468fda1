"""Errors of the export side, beside those that it shares with the device (edge_runtime.errors).

CoveyError
└── ExportError      exit code 10   a model, task or option that covey export cannot handle
    └── AdapterError             10   a PEFT adapter with parts that covey export refuses
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_runtime.errors import CoveyError

if TYPE_CHECKING:
    from collections.abc import Sequence

REPORT_HINT = "report the model's name, the command and the output of `pip freeze`"
"""What to do about a failure that no option of ``covey export`` avoids."""


class ExportError(CoveyError):
    """A model, a task or an option that ``covey export`` cannot handle."""

    exit_code = 10
    subject = "export"


class AdapterError(ExportError):
    """A PEFT adapter with parts that ``covey export`` refuses.

    Args:
        what: see CoveyError.
        hint: see CoveyError.
        table: a row for each part, with the fields of export.model.adapter_table.AdapterRow.
    """

    def __init__(self, what: str, hint: str, table: Sequence[dict[str, object]]) -> None:
        super().__init__(what, hint)
        self.table = list(table)
        self.details = {"adapter": self.table}
