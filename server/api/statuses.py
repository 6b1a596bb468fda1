"""Which HTTP status an error gets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_runtime.errors import ConfigError
from server.errors import NoSuchDeviceError, NoSuchJobError

if TYPE_CHECKING:
    from edge_runtime.errors import CoveyError

_STATUS = {NoSuchJobError: 404, NoSuchDeviceError: 404, ConfigError: 422}


def status_of(error: CoveyError) -> int:
    """Return the status of the answer that says why something was refused."""
    return _STATUS.get(type(error), 409)
