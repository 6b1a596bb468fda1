"""Errors of the export side, beside those that it shares with the device (edge_runtime.errors).

CoveyError
└── ExportError      exit code 10   a model, task or option that covey export cannot handle
    └── AdapterError             10   a PEFT adapter with parts that covey export refuses
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

from edge_runtime.errors import CoveyError

if TYPE_CHECKING:
    from collections.abc import Iterator

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


@contextlib.contextmanager
def compiling(what: str, hint: str = REPORT_HINT) -> Iterator[None]:
    """Turn every exception of PyTorch's tracers and the runtimes' exporters into an ExportError.

    They raise exceptions of many types. The error has the whole text, because it goes into a report; compare
    edge_runtime.errors.wall, which shortens it.

    Args:
        what: begins the message: who cannot do what.
        hint: what to do about it.

    Raises:
        ExportError: ``what``, and the exception's type and text.
    """
    try:
        yield
    except ExportError:
        raise
    except Exception as error:
        logging.getLogger(__name__).debug("%s", what, exc_info=True)
        raise ExportError(f"{what}: {type(error).__name__}: {error}", hint) from error
