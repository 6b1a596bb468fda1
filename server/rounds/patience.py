"""Goes on where a process has no file descriptor left: many devices that fetch may take them all for a while."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, TypeVar

from edge_runtime.errors import ShortageError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
_LOG = logging.getLogger(__name__)
_AGAIN_S = 2.0
"""Seconds between two attempts."""


def patiently(action: Callable[[], T], should_stop: Callable[[], bool]) -> T:
    """Return an action's result; while descriptors are short, say so and try the action again.

    Args:
        action: what is done; where it fails for want of a descriptor, it can be done again from its beginning.
        should_stop: asked before each new attempt.

    Raises:
        ShortageError: descriptors are short, and the server is told to stop.
    """
    while True:
        try:
            return action()
        except ShortageError as error:
            if should_stop():
                raise
            _LOG.error("%s; trying again in %g s", error, _AGAIN_S)
            time.sleep(_AGAIN_S)
