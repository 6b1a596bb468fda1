"""The composition root: makes coordinators and jobs from stores and services, for serving, simulations and tests."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from edge_runtime.forward_only.slices import replay_in_turn
from server.profiles.received import ProfileStore
from server.rounds.coordinator import Coordinator
from server.rounds.job_run import JobRun
from server.rounds.roster import Roster
from server.storage.adapters import AdapterChain
from server.storage.blob_address import BLOBS_FOLDER, COPIES_FOLDER, DELTAS_FOLDER
from server.storage.blobs import BlobStore
from server.storage.bucket import bucket_of
from server.storage.bucket_blobs import BucketBlobs
from server.storage.ledger import Ledger
from server.storage.ledger_address import LEDGER_FILE
from server.storage.queries import closed_rounds
from server.storage.wanted_blobs import wanted_blobs, wanted_deltas
from server.web.uploads import Uploads

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from edge_runtime.forward_only.slices import Replayed
    from server.events import Observer
    from server.fleet.devices import Device
    from server.job.fitted import FittedJob
    from server.rounds.services import Services
    from server.storage.adapters import Start
    from server.storage.ledger import Waiting


TICK_S = 0.5
"""Seconds that a server waits for a message before it looks at deadlines."""

_REMOVALS_S = 5.0
"""Seconds that a server waits at its end for the removal of blobs in a bucket; the next one goes on with it."""


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

    def close(self) -> None:
        """Close the ledger, after what is to be removed from a bucket."""
        for store in (self.blobs, self.uploads.blobs):
            store.close(_REMOVALS_S)
        self.ledger.close()


def open_stores(state_dir: Path, *, durable: bool = True, waiting: Waiting | None = None) -> Stores:
    """Open the stores in a state directory; close the ledger afterwards.

    Args:
        state_dir: the server's state directory.
        durable: whether the ledger survives a power cut.
        waiting: how a server takes a ledger in PostgreSQL for itself, and waits for a bucket; None: it does not.

    Raises:
        StorageError: the ledger cannot be opened, or the bucket not be used.
        ConfigError: the bucket's settings are none.
        JobError: another server has it.
    """
    ledger = Ledger(state_dir / LEDGER_FILE, durable=durable, waiting=waiting)
    try:
        blobs, deltas = _open_blobs(state_dir, ledger, time.sleep if waiting is None else waiting.sleep)
    except BaseException:
        ledger.close()
        raise
    return Stores(ledger, blobs, Uploads(deltas))


def _open_blobs(state_dir: Path, ledger: Ledger, sleep: Callable[[float], object]) -> tuple[BlobStore, BlobStore]:
    """Return the blobs that are served, and those that devices send."""
    bucket = bucket_of(state_dir, sleep)
    if bucket is None:
        return BlobStore(state_dir / BLOBS_FOLDER), BlobStore(state_dir / DELTAS_FOLDER)
    bucket.check()
    copies = state_dir / COPIES_FOLDER
    blobs, deltas = (BucketBlobs(bucket, name, copies / name, ledger.is_ours) for name in (BLOBS_FOLDER, DELTAS_FOLDER))
    blobs.begin(lambda: wanted_blobs(ledger))
    deltas.begin(lambda: wanted_deltas(ledger))
    return blobs, deltas


@dataclass(frozen=True)
class Composed:
    """One job with a coordinator of its own, for simulations and tests.

    Attributes:
        coordinator: reads the devices' messages.
        job_run: the job.
        resumed: whether the ledger had the job already.
    """

    coordinator: Coordinator
    job_run: JobRun
    resumed: bool

    @property
    def devices(self) -> Mapping[str, Device]:
        """The devices that have sent a message, by name."""
        return self.coordinator.devices

    def run(self, should_stop: Callable[[], bool] = lambda: False) -> bool:
        """Run the job to its end; it can be resumed after it was stopped, and after every error.

        Args:
            should_stop: asked between messages.

        Returns:
            Whether the job is finished (False: it was stopped).

        Raises:
            JobError: a round failed ``max_attempts`` times.
            StorageError: the ledger or a blob cannot be written.
        """
        try:
            self.job_run.begin(resumed=self.resumed, should_stop=should_stop)
            while not should_stop():
                if self.job_run.step():
                    return True
                self.coordinator.handle_next(TICK_S)
            return False
        finally:
            self.job_run.close()


def compose_coordinator(
    fleet: str, ledger: Ledger, services: Services, observe: Observer, should_stop: Callable[[], bool] = lambda: False
) -> Coordinator:
    """Make a fleet's coordinator, which has no job yet.

    Args:
        fleet: name of the fleet.
        ledger: what happens to devices is entered in it.
        services: what it uses of the outside world.
        observe: receives events of devices.
        should_stop: asked while something is tried again, for want of file descriptors.
    """
    return Coordinator(Roster(fleet, ProfileStore(fleet, ledger), ledger, observe), services, should_stop)


def enter(
    fleet: str, fitted: FittedJob, start: Start, stores: Stores, replayed: Replayed = replay_in_turn
) -> tuple[AdapterChain, bool]:
    """Enter a job in the ledger, or resume it; return its adapters and whether the ledger had it already.

    Args:
        fleet: name of the fleet.
        fitted: the job and its bundle.
        start: has the adapter that the job starts from.
        stores: what the server keeps on disk.
        replayed: replays the slices of an adapter.

    Raises:
        JobError: the job is finished, was begun with another configuration, or has lost an adapter.
        StorageError: the ledger cannot be written.
    """
    job = fitted.job
    resumed = stores.ledger.begin_job(job.name, fleet, fitted.bundle_sha256, msgspec.to_builtins(job))
    closed = closed_rounds(stores.ledger, job.name)
    return AdapterChain(start, stores.blobs, closed, momentum=job.server_momentum > 0, replayed=replayed), resumed


def compose_run(
    coordinator: Coordinator,
    fitted: FittedJob,
    chain: AdapterChain,
    stores: Stores,
    services: Services,
    observe: Observer,
    has: Callable[[Device], bool] = lambda _device: True,
) -> JobRun:
    """Make a job that was entered in the ledger, and hand its messages to it.

    Args:
        coordinator: the fleet's coordinator.
        fitted: the job and its bundle.
        chain: the job's adapters.
        stores: what the server keeps on disk.
        services: what it uses of the outside world.
        observe: receives the job's events.
        has: whether a device works for this job.
    """
    coordinator.roster.profiles.manifests[fitted.bundle_sha256] = fitted.manifest
    made = JobRun(coordinator.roster, fitted, stores.ledger, chain, services, observe, has)
    coordinator.add(made)
    return made


def compose(
    fleet: str,
    fitted: FittedJob,
    start: Start,
    stores: Stores,
    connect: Callable[[], Services],
    observe: Observer,
) -> Composed:
    """Enter a job in the ledger, or resume it, and make it with a coordinator of its own.

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
    chain, resumed = enter(fleet, fitted, start, stores)
    services = connect()
    coordinator = compose_coordinator(fleet, stores.ledger, services, observe)
    return Composed(coordinator, compose_run(coordinator, fitted, chain, stores, services, observe), resumed)
