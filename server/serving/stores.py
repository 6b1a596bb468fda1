"""The stores of a server, for it alone: a standby waits here until the server before it has ended."""

from __future__ import annotations

import contextlib
import logging
import time
from typing import TYPE_CHECKING

from edge_runtime.files.writable import check_writable
from server.compose import open_stores
from server.serving.options import only_one
from server.storage.blob_address import forget_bucket, keep_bucket
from server.storage.bucket import START_S
from server.storage.ledger import Waiting
from server.storage.ledger_address import LEDGER_FILE, address_beside, forget_address, keep_address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from server.compose import Stores
    from server.serving.options import ServeOptions

_LOG = logging.getLogger(__name__)
_LOOK_S = 0.5
"""Seconds from one look at the lock of a state directory to the next."""


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
        StorageError: it cannot be written, the ledger is damaged or cannot be reached, or the bucket cannot be used.
        ConfigError: the ledger or the bucket is another one than that of this directory.
    """
    check_writable(options.state_dir, "--state-dir")

    def pause(seconds: float) -> None:
        if should_stop():
            raise StoppedError
        time.sleep(seconds)

    with contextlib.ExitStack() as open_things, contextlib.ExitStack() as undo:  # what has never worked may be mistyped
        if options.ledger is not None and keep_address(options.state_dir, options.ledger):
            undo.callback(forget_address, options.state_dir)
        if options.blobs is not None and keep_bucket(options.state_dir, options.blobs):
            undo.callback(forget_bucket, options.state_dir)
        if address_beside(options.state_dir / LEDGER_FILE) is None:
            if options.standby:
                _LOG.info("standby: this server begins when the one that uses %s has ended", options.state_dir)
            wait = (lambda: pause(_LOOK_S)) if options.standby else None
            open_things.enter_context(only_one(options.state_dir, wait))
        stores = open_stores(options.state_dir, waiting=Waiting(None if options.standby else START_S, pause))
        undo.pop_all()
        open_things.callback(stores.close)
        yield stores
