"""What all writes of the ledger share: the open file."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from server.storage.database import Database


class Writes:
    """Writes to one ledger.

    Args:
        database: the open file.

    Attributes:
        database: the open file.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
