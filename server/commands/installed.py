"""Commands that need the libraries of the extra ``server`` say so where it is not installed."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from edge_runtime.errors import ConfigError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    Command = Callable[[argparse.Namespace], int]


def needs_server(run: Command) -> Command:
    """Return a command that first looks whether the server's libraries are installed.

    Raises:
        ConfigError: they are not.
    """

    @functools.wraps(run)
    def checked(args: argparse.Namespace) -> int:
        try:
            import server.client.client
            import server.storage.ledger  # noqa: F401 whether they can be imported is the question
        except ImportError as error:
            raise ConfigError(f"the server is not installed ({error})", "pip install 'covey[server]'") from error
        return run(args)

    return checked
