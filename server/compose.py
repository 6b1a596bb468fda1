"""The composition root: makes a job's coordinator from its stores and services, for serve, simulations and tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from server.rounds.coordinator import Coordinator
from server.storage.adapters import AdapterChain
from server.storage.blobs import BlobStore
from server.storage.ledger import LEDGER_FILE, Ledger
from server.storage.queries import closed_rounds
from server.web.uploads import Uploads

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from server.events import Observer
    from server.job.fitted import FittedJob
    from server.rounds.services import Services
    from server.storage.adapters import Start


@dataclass(frozen=True)
class Stores:
    """What a server keeps on disk.

    Attributes:
        ledger: the ledger.
        blobs: adapters and logs that devices may fetch.
        uploads: deltas that devices may send.
    """

    ledger: Ledger
    blobs: BlobStore
    uploads: Uploads


def open_stores(state_dir: Path, *, durable: bool = True) -> Stores:
    """Open the stores in a state directory; close the ledger afterwards.

    Args:
        state_dir: the server's state directory.
        durable: whether the ledger survives a power cut.

    Raises:
        StorageError: the ledger cannot be opened.
    """
    ledger = Ledger(state_dir / LEDGER_FILE, durable=durable)
    return Stores(ledger, BlobStore(state_dir / "blobs"), Uploads(BlobStore(state_dir / "deltas")))


@dataclass(frozen=True)
class Composed:
    """A job that can run.

    Attributes:
        coordinator: runs it.
        chain: its adapters.
        resumed: whether the ledger had the job already.
    """

    coordinator: Coordinator
    chain: AdapterChain
    resumed: bool

    def run(self, should_stop: Callable[[], bool]) -> bool:
        """Run the job to its end; see Coordinator.run."""
        return self.coordinator.run(resumed=self.resumed, should_stop=should_stop)


def compose(
    fleet: str,
    fitted: FittedJob,
    start: Start,
    stores: Stores,
    connect: Callable[[], Services],
    observe: Observer,
) -> Composed:
    """Enter a job in the ledger, or resume it, and make its coordinator.

    Args:
        fleet: name of the fleet.
        fitted: the job and its bundle.
        start: has the adapter that the job starts from.
        stores: what the server keeps on disk.
        connect: makes the services; it is called once the ledger has accepted the job and its adapters are there.
        observe: receives events.

    Raises:
        JobError: the job is finished, was begun with another configuration, or has lost an adapter.
        StorageError: the ledger cannot be written.
    """
    job = fitted.job
    resumed = stores.ledger.begin_job(job.name, fleet, fitted.bundle_sha256, msgspec.to_builtins(job))
    closed = closed_rounds(stores.ledger, job.name)
    chain = AdapterChain(start, stores.blobs, closed, momentum=job.server_momentum > 0)
    return Composed(Coordinator(fleet, fitted, stores.ledger, chain, connect(), observe), chain, resumed)
