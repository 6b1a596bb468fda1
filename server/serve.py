"""Serves one job from its files to its finished adapter: opens broker and HTTP side, and runs the coordinator."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import secrets
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edge_runtime.bundle.folder import open_bundle, verify_files
from edge_runtime.data.examples import DataConfig
from edge_runtime.data.rows import load_rows
from edge_runtime.engines.choose import Engines
from edge_runtime.errors import storage_error
from edge_runtime.files.writable import check_writable
from edge_runtime.network.access import check_access
from edge_runtime.network.mqtt import MqttTransport
from edge_runtime.protocol.topics import hello_topic, servers_topic, topic_for
from server.compose import compose, open_stores
from server.errors import JobError
from server.evaluation import BackgroundEvaluator, evaluate
from server.fleet.other_servers import ANSWER_S, Myself, OtherServers
from server.job.fitted import FittedJob, fit_to_bundle
from server.job.job import read_job
from server.rounds.patience import patiently
from server.rounds.services import Services
from server.storage.result_folder import JOB_FILE, write_finished
from server.views.summary import job_summary
from server.web.broker import EMBEDDED, open_broker
from server.web.http_app import make_app, serve_http

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.network.address import BrokerAddress, TlsFiles
    from edge_runtime.network.transport import Transport
    from edge_runtime.protocol.topics import Kind
    from server.events import Observer

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServeOptions:
    """Folders and addresses of a server; ``covey serve --help`` explains each."""

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


def load_job(path: Path, bundle_path: Path) -> tuple[FittedJob, Bundle]:
    """Read a job and its bundle, and check that they fit.

    Raises:
        ConfigError: the job is wrong or does not fit the bundle; the message names the field.
        BundleError: the bundle is damaged.
    """
    bundle = open_bundle(bundle_path)
    verify_files(bundle)
    return fit_to_bundle(read_job(path), bundle.manifest, bundle.sha256), bundle


def run_job(
    fitted: FittedJob,
    bundle: Bundle,
    options: ServeOptions,
    observe: Observer,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any] | None:
    """Run a job to its end.

    Returns:
        The job's summary (summary.job_summary); None: it was stopped and can be resumed.

    Raises:
        CoveyError: see errors.py; closed rounds stay in the ledger, and the job can be resumed.
    """

    others: list[OtherServers] = []

    def connect(stack: contextlib.ExitStack, http_port: int) -> Transport:
        address = stack.enter_context(open_broker(options.broker, options.listen, options.mqtt_port, should_stop))
        if options.broker != EMBEDDED:
            _warn_of_access_lists(address, options)
        server_id = secrets.token_hex(8)
        others.append(stack.enter_context(_only_server(address, options, server_id)))
        # No session is kept: with each connection the hello makes the devices answer, and send again what is open.
        identity = f"covey-server-{options.fleet}-{server_id}"
        transport = MqttTransport(address, identity, tls=options.tls, keep_session=False)
        stack.callback(transport.close)
        _LOG.info("devices connect to port %d; bundles and adapters on port %d", address.port, http_port)
        return transport

    def should_end() -> bool:
        for watch in others:
            watch.check()
        return should_stop()

    return coordinate(fitted, bundle, options, connect, observe, should_end)


@contextlib.contextmanager
def _only_server(address: BrokerAddress, options: ServeOptions, server_id: str) -> Iterator[OtherServers]:
    """See that no other server of the fleet is on the broker, and go on watching until the block ends.

    Raises:
        JobError: another one is there.
    """
    identity = f"covey-server-{options.fleet}-{server_id}-watch"
    transport = MqttTransport(address, identity, tls=options.tls, keep_session=False)
    watch = OtherServers(Myself(options.fleet, server_id, socket.gethostname()), transport)
    try:
        watch.begin(0 if options.broker == EMBEDDED else ANSWER_S)  # nobody is on a broker that has just been made
        yield watch
    finally:
        watch.close()


def coordinate(
    fitted: FittedJob,
    bundle: Bundle,
    options: ServeOptions,
    connect: Callable[[contextlib.ExitStack, int], Transport],
    observe: Observer,
    should_stop: Callable[[], bool],
) -> dict[str, Any] | None:
    """Run a job over any transport; see run_job.

    Args:
        fitted: the job.
        bundle: its bundle.
        options: folders and addresses; those of the broker are not used.
        connect: makes the transport once the HTTP side listens; gets a stack for clean-up, and the HTTP port.
        observe: receives events.
        should_stop: asked between messages.
    """
    check_writable(options.state_dir, "--state-dir")  # before minutes are spent on anything else
    job = fitted.job
    rows = load_rows(bundle, DataConfig(path=job.eval_file))
    predictor = Engines(threads=options.threads).make_predictor(bundle)
    n_labels = len(bundle.manifest.task.labels)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_only_one(options.state_dir))
        stores = open_stores(options.state_dir)
        stack.callback(stores.ledger.close)
        stores.blobs.add_bundle(bundle)

        def services() -> Services:
            app = make_app(stores.blobs, stores.uploads)
            port = stack.enter_context(serve_http(app, options.listen, options.http_port))
            return Services(
                transport=connect(stack, port),
                uploads=stores.uploads,
                evaluator=BackgroundEvaluator(lambda theta: evaluate(predictor, theta, rows, n_labels)),
                clock=time.monotonic,
                blob_url=f"{(options.public_url or f'http://:{port}').rstrip('/')}/blobs",
            )

        composed = compose(options.fleet, fitted, bundle, stores, services, observe)
        if not composed.run(should_stop):
            return None
        result_dir = options.state_dir / "jobs" / job.name / "adapter"
        summary = job_summary(stores.ledger, job.name)
        if not (result_dir / JOB_FILE).exists():
            patiently(lambda: write_finished(bundle, composed.chain.theta, result_dir, summary), should_stop)
        stores.ledger.end_job(job.name, "finished", str(result_dir))
        return {**summary, "state": "finished", "result_dir": str(result_dir)}


def _warn_of_access_lists(address: BrokerAddress, options: ServeOptions) -> None:
    """Log what an access list of the broker keeps from the server; a broker drops what it forbids without a word."""

    def topics(device: str, kinds: Sequence[Kind]) -> list[str]:
        return [topic_for(options.fleet, device, kind) for kind in kinds]

    access = check_access(
        address,
        f"covey-server-{options.fleet}-check",
        options.tls,
        reads=[servers_topic(options.fleet), *topics("+", ("birth", "state", "profile", "report", "log"))],
        writes=[  # those of a device are of one that is not there
            hello_topic(options.fleet),
            servers_topic(options.fleet),
            *topics("covey-check", ("plan", "report/ack", "log/get")),
        ],
    )
    for cause in access.causes:
        _LOG.warning("%s", cause)


@contextlib.contextmanager
def _only_one(state_dir: Path) -> Iterator[None]:
    """Lock the state directory: two servers on one ledger would each aggregate half of a round."""
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
