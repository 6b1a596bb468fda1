"""One job from its files to its finished adapter: wires broker, HTTP side, ledger and coordinator together."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from edge_runtime.bundle.folder import open_bundle, verify_files
from edge_runtime.data.examples import DataConfig
from edge_runtime.data.rows import load_rows
from edge_runtime.engines.choose import Engines
from edge_runtime.errors import storage_error
from edge_runtime.network.mqtt import MqttTransport
from server.errors import JobError
from server.evaluation import evaluate
from server.job.fitted import fit_to_bundle
from server.job.job import read_job
from server.rounds.coordinator import Coordinator
from server.rounds.setting import Setting
from server.storage.adapters import AdapterChain
from server.storage.blobs import BlobStore
from server.storage.ledger import LEDGER_FILE, Ledger
from server.storage.result_folder import JOB_FILE, write_finished
from server.views.summary import job_summary
from server.web.broker import EMBEDDED, open_broker
from server.web.http_app import make_app, serve_http
from server.web.uploads import Uploads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.network.address import TlsFiles
    from edge_runtime.network.transport import Transport
    from server.events import Observer
    from server.job.job import Job

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServeOptions:
    """Where things are; ``covey serve --help`` explains each."""

    bundle: Path
    state_dir: Path
    fleet: str = "default"
    broker: str = EMBEDDED
    listen: str = "0.0.0.0"  # noqa: S104 the devices are on the network
    mqtt_port: int = 1883
    http_port: int = 8080
    public_url: str | None = None
    threads: int = 0
    tls: TlsFiles | None = None


def load_job(path: Path, bundle_path: Path) -> tuple[Job, Bundle]:
    """Read a job and its bundle, and check that they fit.

    Raises:
        ConfigError, BundleError: names what does not fit.
    """
    bundle = open_bundle(bundle_path)
    verify_files(bundle)
    return fit_to_bundle(read_job(path), bundle.manifest), bundle


def run_job(
    job: Job,
    bundle: Bundle,
    options: ServeOptions,
    observe: Observer,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any] | None:
    """Run a job to its end.

    Returns:
        The job's summary (summary.job_summary), or None where it was stopped and can be resumed.

    Raises:
        CoveyError: see errors.py; what was done is in the ledger.
    """

    def connect(stack: contextlib.ExitStack, http_port: int) -> Transport:
        address = stack.enter_context(open_broker(options.broker, options.listen, options.mqtt_port))
        transport = MqttTransport(address, f"covey-server-{options.fleet}", tls=options.tls)
        stack.callback(transport.close)
        _LOG.info("devices connect to port %d; bundles and adapters on port %d", address.port, http_port)
        return transport

    return coordinate(job, bundle, options, connect, observe, should_stop)


def coordinate(
    job: Job,
    bundle: Bundle,
    options: ServeOptions,
    connect: Callable[[contextlib.ExitStack, int], Transport],
    observe: Observer,
    should_stop: Callable[[], bool],
) -> dict[str, Any] | None:
    """Run a job over any transport; see run_job.

    Args:
        job: the job.
        bundle: its bundle.
        options: where things are; those of the broker are not looked at.
        connect: makes the transport once the HTTP side is up; told its port, and where to leave what must be closed.
        observe: told what happens.
        should_stop: asked between messages.
    """
    rows = load_rows(bundle, DataConfig(path=job.eval_file))
    predictor = Engines(threads=options.threads).make_predictor(bundle)
    n_labels = len(bundle.manifest.task.labels)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_only_one(options.state_dir))
        ledger = Ledger(options.state_dir / LEDGER_FILE)
        stack.callback(ledger.close)
        resumed = ledger.begin_job(job.name, options.fleet, bundle.sha256, msgspec.to_builtins(job))
        blobs = BlobStore(options.state_dir / "blobs")
        blobs.add_bundle(bundle)
        chain = AdapterChain(bundle, blobs, ledger.closed_rounds(job.name), momentum=job.server_momentum > 0)
        uploads = Uploads(BlobStore(options.state_dir / "deltas"))
        port = stack.enter_context(serve_http(make_app(blobs, uploads), options.listen, options.http_port))
        transport = connect(stack, port)
        setting = Setting(
            fleet=options.fleet,
            job=job,
            manifest=bundle.manifest,
            bundle_sha256=bundle.sha256,
            blob_url=f"{(options.public_url or f'http://:{port}').rstrip('/')}/blobs",
            uploads=uploads,
            evaluate=lambda theta: evaluate(predictor, theta, rows, n_labels),
            clock=time.monotonic,
        )
        coordinator = Coordinator(setting, ledger, chain, transport, observe)
        if not coordinator.run(resumed=resumed, should_stop=should_stop):
            return None
        result_dir = options.state_dir / "jobs" / job.name / "adapter"
        summary = job_summary(ledger, job.name)
        if not (result_dir / JOB_FILE).exists():
            write_finished(bundle, chain.theta, result_dir, summary)
        ledger.end_job(job.name, "finished", str(result_dir))
        return {**summary, "state": "finished", "result_dir": str(result_dir)}


@contextlib.contextmanager
def _only_one(state_dir: Path) -> Iterator[None]:
    """Hold the state directory: two servers on one ledger would each aggregate half a round."""
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        lock = (state_dir / "lock").open("w")
    except OSError as error:
        raise storage_error(error, state_dir) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise JobError(f"another server uses {state_dir}", "stop it, or give another --state-dir") from error
        yield
