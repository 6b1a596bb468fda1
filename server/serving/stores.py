"""The stores of a server, for it alone: a standby waits here until the server before it has ended."""

from __future__ import annotations

import contextlib
import logging
import time
from typing import TYPE_CHECKING

from edge_runtime.files.writable import check_writable
from server.compose import open_stores
from server.serving.options import only_one
from server.storage.ledger import Waiting
from server.storage.ledger_address import LEDGER_FILE, address_beside, forget_address, keep_address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from server.compose import Stores
    from server.serving.options import ServeOptions

_LOG = logging.getLogger(__name__)
_LOOK_S = 0.5
"""Seconds from one look at the lock of a state directory to the next."""
_START_S = 30.0
"""Seconds for which a server waits at its start for a database, or for one that has just ended to be gone from it."""


class StoppedError(BaseException):  # so that nothing on the way takes it for a fault
    """The operator has ended a server that waited for its turn, or for its database."""


@contextlib.contextmanager
def locked_stores(options: ServeOptions, should_stop: Callable[[], bool]) -> Iterator[Stores]:
    """Open the stores of a state directory, for this server alone, until the block ends.

    A ledger in a file is guarded by a lock on the directory. One in PostgreSQL is guarded there, so that servers on
    several machines can share the directory: whoever has the connection with the lock may write.

    Args:
        options: folders, and whether this server waits for another one's end.
        should_stop: asked while it waits.

    Raises:
        JobError: another server uses it, and this one does not wait.
        StoppedError: told to stop while it waited.
        StorageError: it cannot be written, or the ledger is damaged or cannot be reached.
        ConfigError: the ledger is another one than that of this directory.
    """
    check_writable(options.state_dir, "--state-dir")
    is_new_address = options.ledger is not None and keep_address(options.state_dir, options.ledger)

    def pause(seconds: float) -> None:
        if should_stop():
            raise StoppedError
        time.sleep(seconds)

    with contextlib.ExitStack() as open_things:
        waiting: Waiting | None = None
        if address_beside(options.state_dir / LEDGER_FILE) is not None:
            waiting = Waiting(None if options.standby else _START_S, pause)
        elif options.standby:
            _LOG.info("standby: this server begins when the one that uses %s has ended", options.state_dir)
            open_things.enter_context(only_one(options.state_dir, lambda: pause(_LOOK_S)))
        else:
            open_things.enter_context(only_one(options.state_dir))
        try:
            stores = open_stores(options.state_dir, waiting=waiting)
        except BaseException:
            if is_new_address:  # one that has never worked may be mistyped
                forget_address(options.state_dir)
            raise
        open_things.callback(stores.ledger.close)
        yield stores
