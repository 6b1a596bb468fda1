"""Whether the device may take work now: its owner's rules allow it, and its rows can be used."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from edge_runtime.errors import ConfigError, DataError

if TYPE_CHECKING:
    from edge_runtime.data.watch import RowsWatch
    from edge_runtime.device.gate import Gate

_LOG = logging.getLogger(__name__)


class Readiness:
    """Joins the owner's rules and the state of the rows into one answer.

    Args:
        gate: the owner's rules.
        rows: whether the device's rows can be used.
    """

    def __init__(self, gate: Gate, rows: RowsWatch) -> None:
        self._gate, self._rows = gate, rows
        self._unusable = rows.reason

    @property
    def closed(self) -> str | None:
        """Why the device takes no work, as of the last look; None: it does. It says nothing of the rows' words."""
        rows = None if self._unusable is None else f"its rows are unusable: {self._unusable}"
        return "; ".join(reason for reason in (self._gate.closed, rows) if reason is not None) or None

    def look(self, *, now: bool = False) -> bool:
        """Evaluate rules (see Gate.look) and rows; return whether others than before keep the device from work."""
        before, self._unusable = self._unusable, self._rows.reason
        if before != self._unusable:
            _LOG.info("its rows %s", "will be read again" if self._unusable is None else f"are: {self._unusable}")
        return self._gate.look(now=now) or before != self._unusable

    def check(self) -> None:
        """Raise what keeps the device from work, as of the last look.

        Raises:
            ConfigError: the owner's rules that are broken.
            DataError: the rows cannot be used.
        """
        if self._gate.closed is not None:
            raise ConfigError(self._gate.closed, "see [eligibility] in edge.toml")
        if self._unusable is not None:
            raise DataError(self._unusable, "covey-edge data check says more", facts=self._unusable)
