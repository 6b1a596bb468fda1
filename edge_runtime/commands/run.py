"""``covey-edge run``: join the fleet, train when asked, and report."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime import output
from edge_runtime.errors import ConfigError, CoveyError, NetworkError, as_covey_error
from edge_runtime.host.threads import TOKENIZERS_VARIABLE
from edge_runtime.notify import notifier_of

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from edge_runtime.agent.config import EdgeConfig
    from edge_runtime.agent.new_covey import LauncherSlots
    from edge_runtime.network.cause import Cause
    from edge_runtime.network.mqtt import MqttTransport
    from edge_runtime.network.transport import Will
    from edge_runtime.notify import Notifier
    from edge_runtime.predictions.service import PredictionService
    from edge_runtime.signing.members import Member
    from edge_runtime.store.store import Store
    from edge_runtime.update.heartbeat import Heartbeat

_LOG = logging.getLogger(__name__)


def add_run_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``run``."""
    run = commands.add_parser("run", help="join the fleet and train when asked", description=_run.__doc__)
    run.add_argument("--config", type=Path, required=True, metavar="edge.toml")
    run.add_argument("--until-finished", action="store_true", help="end when a job's final adapter is here")
    output.add_format(run)
    run.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    """Join the fleet: announce, take plans, train on the local rows, report scalars, prove the adapter by hash."""
    from edge_runtime.update.heartbeat import PIPE_VARIABLE, heartbeat_of

    heartbeat = heartbeat_of(os.environ)
    notifier = notifier_of(os.environ, os.getpid(), may_speak_for=PIPE_VARIABLE in os.environ)
    try:
        return _serve(args, heartbeat, notifier)
    except Exception as error:
        heartbeat.fail(as_covey_error(error).public)
        raise


def _read_config(path: Path) -> EdgeConfig:
    """Read the configuration; its number of threads holds for whoever encodes rows too, of which none is encoded yet.

    Raises:
        ConfigError: see read_edge_config.
    """
    from edge_runtime.agent.config import read_edge_config

    config = read_edge_config(path)
    if config.threads:
        os.environ[TOKENIZERS_VARIABLE] = str(config.threads)
    return config


def _serve(args: argparse.Namespace, heartbeat: Heartbeat, notifier: Notifier) -> int:  # long: the order is the point
    from edge_runtime.agent.agent import Agent
    from edge_runtime.agent.announcer import lost_will
    from edge_runtime.agent.kept_log import keeping_log
    from edge_runtime.device.machine import this_machine
    from edge_runtime.store.store import Store

    config = _read_config(args.config)
    _require_parts(config)
    store = Store(Path(config.state_dir))
    machine = this_machine(config.eligibility, store.root)  # impossible rules are an error now too
    boot_id = os.urandom(8).hex()
    member = _member(config, boot_id, store.root)
    will = lost_will(config, boot_id)
    heartbeat.reach("started")
    notifier.ready(f"connecting to {config.broker.rpartition('@')[2]}")
    notifier.watch()
    with _predictions(config, store) as service, keeping_log(store.root) as log:
        _say_outcome()
        heartbeat.reach("connecting")
        transport = _connect(config, args.config.absolute(), will if member is None else member.seal_will(will))
        stop_renewing = _renew(args.config.absolute())
        signed = None if member is None else member.around(transport)
        agent = Agent(config, store, signed or transport, boot_id, machine=machine, log=log, contained=True)
        agent._releases.covey = _launcher(args.config.absolute())
        if service is not None and config.predict.answer_server:
            agent.answer_with(service)
        stop = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: stop.set())
        heartbeat.reach("serving")
        notifier.status(f"device {config.name} of fleet {config.fleet}")

        def should_stop() -> bool:
            heartbeat.beat()  # the agent asks in each turn of its loop
            return stop.is_set()

        try:
            finished = agent.run(until_finished=args.until_finished, should_stop=should_stop)
        finally:
            notifier.stopping()
            stop_renewing()
            topic, goodbye = agent.goodbye()
            transport.close((topic, signed.seal(topic, goodbye) if signed else goodbye))
    if finished is not None:
        result = {"job": finished.job, "adapter_sha256": finished.adapter_sha256}
        output.emit(args, result, f"job {finished.job} is finished; adapter {finished.adapter_sha256}")
    return 0


def _connect(config: EdgeConfig, path: Path, will: Will) -> MqttTransport:
    """Connect to the broker, and see that no access list keeps the device from its work.

    Raises:
        NetworkError: there is no broker in time, or an access list does.
        EnrolmentError: the device is no member any more.
    """
    from edge_runtime.agent.broker_access import require_access
    from edge_runtime.network.address import parse_broker
    from edge_runtime.network.mqtt import MqttTransport

    transport = MqttTransport(
        parse_broker(config.broker),
        f"covey-{config.fleet}-{config.name}",
        will=will,
        tls=config.tls,
        connect_timeout_s=config.connect_timeout_s,
        # Some brokers (the embedded one) send the retained hello only into a new session. Nothing is lost: whoever
        # answers the hello gets the open plan, and an unacknowledged report is sent again.
        keep_session=False,
        ask_why=_membership(path),
    )
    try:
        require_access(config)
    except NetworkError:
        transport.close()
        raise
    return transport


def _require_parts(config: EdgeConfig) -> None:
    """Check what a round would need, so that its lack is an error now and not in the first round."""
    from edge_runtime.engines.choose import Engines
    from edge_runtime.engines.provider_trial import try_providers
    from edge_runtime.perturbation.kernel import kernel
    from edge_runtime.store.state_check import check_state_writable

    if not Path(config.data.path).exists():
        raise ConfigError(f"no data file at {config.data.path}", "set [data] path in the configuration")
    kernel()  # a wrong COVEY_KERNEL
    check_state_writable(Path(config.state_dir))
    try_providers(Engines(config.engine, config.threads, config.execution_providers))


@contextlib.contextmanager
def _predictions(config: EdgeConfig, store: Store) -> Iterator[PredictionService | None]:
    """Answer texts on this machine, with or without a connection to the fleet, if the owner wants it.

    Yields what answers, for the server's requests too; None: the owner wants neither.

    Raises:
        ConfigError: it cannot listen there, or the token cannot be read.
    """
    rules = config.predict
    if rules.listen is None and not rules.answer_server:
        yield None
        return
    from edge_runtime.device.memory import free_bytes
    from edge_runtime.engines.choose import Engines
    from edge_runtime.predictions.http_server import PATIENCE_S, Endpoint
    from edge_runtime.predictions.rules import read_token
    from edge_runtime.predictions.service import PredictionService

    token = None if rules.token_file is None else read_token(Path(rules.token_file))
    engines = Engines(config.engine, config.threads, config.execution_providers)
    service = PredictionService(store, config.data, engines, rules, free_bytes, time.monotonic)
    endpoint = None if rules.listen is None else Endpoint(rules.listen, service, token)
    try:
        yield service
    finally:
        if endpoint is None:
            service.stop(PATIENCE_S)
        else:
            endpoint.close()


def _launcher(config: Path) -> LauncherSlots | None:
    """Return what replaces Covey itself; None: no launcher has started this process."""
    from edge_runtime.update.requests import update_root

    root = update_root()
    if root is None:
        return None
    from edge_runtime.agent.new_covey import LauncherSlots

    return LauncherSlots(root, config)


def _say_outcome() -> None:
    """Log how the last switch of versions ended, so that the server learns it; only where a launcher runs this."""
    from edge_runtime.update.requests import last_outcome, update_root

    root = update_root()
    if root is None:
        return
    try:
        outcome = last_outcome(root)
    except CoveyError as error:
        _LOG.warning("how the last update ended is not known: %s", error)
        return
    if outcome is not None and outcome.reason:
        words = "%s from Covey %s to %s: %s, because %s"
        _LOG.warning(words, outcome.kind, outcome.from_version, outcome.to_version, outcome.result, outcome.reason)


def _member(config: EdgeConfig, boot_id: str, state_dir: Path) -> Member | None:
    """Return what signs and checks the device's messages; None: they are not signed."""
    if config.signing is None:
        return None
    from edge_runtime.signing.members import device_member  # 10 MB, for the library of signatures

    return device_member(config.signing, config.fleet, config.name, boot_id, state_dir)


def _membership(config: Path) -> Callable[[Cause], Cause | None]:
    """Return what tells a device that has joined with a token whether it is still a member; see MqttTransport."""
    from edge_runtime.trust.folder import IdentityFolder

    if not IdentityFolder(config).path.is_dir():
        return lambda _cause: None
    from edge_runtime.trust.membership import Membership

    return Membership(config).why


def _renew(config: Path) -> Callable[[], None]:
    """Begin to renew the device's certificate, if it has joined with a token; return what ends it."""
    from edge_runtime.trust.folder import IdentityFolder

    if not IdentityFolder(config).path.is_dir():
        return lambda: None
    from edge_runtime.trust.renew import Renewals  # 15 MB, for the library of certificates

    renewals = Renewals(config, time.time)
    renewals.start()
    return renewals.close
