"""Takes the server's word that this device is too old for a job: it is logged, and kept for ``covey-edge doctor``."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from edge_runtime.engines.least_versions import installed_versions
from edge_runtime.protocol.side_messages import TooOld
from edge_runtime.store.too_old import TooOldNote, with_covey, write_too_old

if TYPE_CHECKING:
    from edge_runtime.bundle.manifest import Runtime
    from edge_runtime.protocol.plans import Plan
    from edge_runtime.store.store import Store

_LOG = logging.getLogger(__name__)


def skip_plan(plan: Plan | TooOld, store: Store, runtime: Runtime) -> None:
    """Say why what has come on the plan topic is not worked on: there is no work, or a newer plan is here.

    Raises:
        StorageError: see take_too_old.
    """
    if isinstance(plan, TooOld):
        take_too_old(plan, store, runtime)
    else:
        _LOG.info("skipped the plan of round %d: a newer one is here", plan.round)


def take_too_old(told: TooOld, store: Store, runtime: Runtime) -> None:
    """Log why there is no work, and keep it.

    Args:
        told: what the server has said.
        store: the device's state directory.
        runtime: the device's engine.

    Raises:
        StorageError: it cannot be kept.
    """
    _LOG.error("no work of job %s for this device: %s", told.job, told.reason)
    note = TooOldNote(told.job, told.bundle_sha256, told.reason, with_covey(installed_versions(runtime)))
    write_too_old(store.root, note)
