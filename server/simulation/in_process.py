"""A whole fleet in one process: the real server, protocol and devices over an in-process broker.

The devices take turns in one thread and share one engine per split. An engine is a function of its inputs, so many
devices take little more memory than one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edge_runtime.agent.agent import Agent
from edge_runtime.agent.announcer import lost_will
from edge_runtime.engines.choose import Engines
from edge_runtime.network.in_process import Hub
from edge_runtime.store.store import Store
from server.errors import JobError
from server.serving.connection import Connection
from server.serving.one_shot import coordinate
from server.serving.options import ServeOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from edge_runtime.agent.config import EdgeConfig
    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.bundle.manifest import Runtime
    from edge_runtime.engines.engine import Engine, MakesEngines, TrainingEngine
    from server.events import Observer
    from server.job.fitted import FittedJob
    from server.ray_work.options import RayOptions

_IDLE_S = 0.002


class SharedEngines:
    """Makes each engine once, for all devices of the process: see engine.MakesEngines.

    Args:
        engines: makes them.
    """

    def __init__(self, engines: MakesEngines) -> None:
        self._makes = engines
        self._engines: dict[tuple[str, int], Engine[Any]] = {}
        self._training: dict[str, TrainingEngine] = {}

    @property
    def runtime(self) -> Runtime:
        """See MakesEngines."""
        return self._makes.runtime

    def make_engine(self, bundle: Bundle, split: int) -> Engine[Any]:
        """Return the engine of a bundle at a split."""
        key = (bundle.sha256, split)
        if key not in self._engines:
            self._engines[key] = self._makes.make_engine(bundle, split)
        return self._engines[key]

    def make_training_engine(self, bundle: Bundle) -> TrainingEngine:
        """Return the engine of a bundle's training graphs."""
        if bundle.sha256 not in self._training:
            self._training[bundle.sha256] = self._makes.make_training_engine(bundle)
        return self._training[bundle.sha256]


def run_in_process(
    fitted: FittedJob,
    bundle: Bundle,
    state_dir: Path,
    devices: Sequence[EdgeConfig],
    observe: Observer = lambda _event: None,
    should_stop: Callable[[], bool] = lambda: False,
    engines: MakesEngines | None = None,
    ray: RayOptions | None = None,
) -> dict[str, Any]:
    """Run a job with its fleet.

    Args:
        fitted: the job, fitted to the bundle.
        bundle: a checked bundle; the devices use it in place.
        state_dir: the server's state directory.
        devices: the devices' configurations; their brokers are ignored.
        observe: called with each event.
        should_stop: called between messages; the job stops when it returns True.
        engines: makes the devices' engines; None: each engine is made once per configured runtime, with the number of
            threads of the first device that is configured with it.
        ray: where the server replays and evaluates; None: in this process.

    Returns:
        The job's summary (summary.job_summary).

    Raises:
        JobError: it was stopped, or a device ended on another adapter than the server.
        CoveyError: see serve.coordinate.
    """
    hub = Hub()
    thread = DeviceThread(hub, _agents(hub, bundle, devices, engines))

    def connect(stack: contextlib.ExitStack, _http_port: int, _security: object, _clock_s: object) -> Connection:
        stack.enter_context(thread.serving())
        return Connection(hub.join(), None)

    # The devices take turns: one accepts its plan when those before it have trained.
    job = msgspec.structs.replace(fitted.job, accept_s=max(fitted.job.accept_s, fitted.job.deadline_s))
    fitted = dataclasses.replace(fitted, job=job)
    options = ServeOptions(state_dir=state_dir, listen="127.0.0.1", http_port=0, threads=1, ray=ray)
    summary = coordinate(fitted, bundle, options, connect, observe, should_stop)
    if summary is None:
        raise JobError("the job was stopped", "start it again to resume it")
    finals = thread.finals
    wrong = sorted(name for name, sha256 in finals.items() if sha256 != summary["adapter_sha256"])
    if wrong or len(finals) != len(devices):
        raise JobError(f"{len(finals)} of {len(devices)} devices finished, on another adapter: {wrong}", "see the log")
    return summary


def _agents(hub: Hub, bundle: Bundle, devices: Sequence[EdgeConfig], engines: MakesEngines | None) -> dict[str, Agent]:
    """Return the agent of each device, by the device's name."""
    shared: dict[Runtime, SharedEngines] = {}
    agents: dict[str, Agent] = {}
    for config in devices:
        store = Store(Path(config.state_dir))
        installed = store.bundles / bundle.sha256
        if not installed.exists():
            installed.symlink_to(bundle.path.resolve(), target_is_directory=True)
        transport = hub.join(lost_will(config, "simulated"))
        if config.engine not in shared:
            shared[config.engine] = SharedEngines(Engines(config.engine, config.threads))
        agents[config.name] = Agent(config, store, transport, "simulated", engines or shared[config.engine])
    return agents


class DeviceThread:
    """Serves devices in a thread, one message of each in turn.

    Args:
        hub: the broker that the devices have joined.
        agents: the devices, by name.

    Attributes:
        finals: the hash of the adapter that each device finished with, by the device's name.
    """

    def __init__(self, hub: Hub, agents: dict[str, Agent]) -> None:
        self._hub, self._agents = hub, agents
        self._done = threading.Event()
        self.finals: dict[str, str] = {}

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        """Run the thread while the body runs."""
        thread = threading.Thread(target=self._serve, name="devices", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._done.set()
            thread.join()

    def _serve(self) -> None:
        while not self._done.is_set():
            before = self._hub.published
            for name, agent in self._agents.items():
                finished = agent.serve_waiting()
                if finished is not None:
                    self.finals[name] = finished.adapter_sha256
            if self._hub.published == before:
                self._done.wait(_IDLE_S)
