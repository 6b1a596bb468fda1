"""A whole fleet in one process: the real server, protocol and devices over an in-process broker. For simulation.

The devices take turns in one thread and share one engine a split, which is a function of its inputs: so many devices
cost little more memory than one.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime.agent.agent import Agent
from edge_runtime.agent.announcer import lost_will
from edge_runtime.engines.choose import make_engine, make_training_engine
from edge_runtime.network.in_process import Hub
from edge_runtime.store.store import Store
from server.errors import JobError
from server.serve import ServeOptions, coordinate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from edge_runtime.agent.config import EdgeConfig
    from edge_runtime.agent.loaded_bundle import EngineMaker, TrainingEngineMaker
    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.bundle.manifest import Runtime
    from edge_runtime.engines.engine import Engine, TrainingEngine
    from edge_runtime.network.transport import Transport
    from server.events import Observer
    from server.job.fitted import FittedJob

_IDLE_S = 0.002


class SharedEngines:
    """Makes each engine once, for all devices of the process; the first caller's number of threads holds."""

    def __init__(self) -> None:
        self._engines: dict[tuple[Runtime, str, int], Engine[Any]] = {}
        self._training: dict[tuple[Runtime, str], TrainingEngine] = {}

    def __call__(self, runtime: Runtime, bundle: Bundle, split: int, threads: int) -> Engine[Any]:
        """Return the engine of a bundle at a split."""
        key = (runtime, bundle.sha256, split)
        if key not in self._engines:
            self._engines[key] = make_engine(runtime, bundle, split, threads)
        return self._engines[key]

    def training(self, runtime: Runtime, bundle: Bundle, threads: int) -> TrainingEngine:
        """Return the engine of a bundle's training graphs."""
        key = (runtime, bundle.sha256)
        if key not in self._training:
            self._training[key] = make_training_engine(runtime, bundle, threads)
        return self._training[key]


def run_in_process(
    fitted: FittedJob,
    bundle: Bundle,
    state_dir: Path,
    devices: Sequence[EdgeConfig],
    observe: Observer = lambda _event: None,
    should_stop: Callable[[], bool] = lambda: False,
    make_engine: EngineMaker | None = None,
    make_training_engine: TrainingEngineMaker | None = None,
) -> dict[str, Any]:
    """Run a job with its fleet.

    Args:
        fitted: the job, fitted to the bundle.
        bundle: a checked bundle; the devices use it where it is.
        state_dir: the server's state directory.
        devices: their configurations; brokers are not looked at.
        observe: told what happens.
        should_stop: asked between messages.
        make_engine: makes the devices' engines; None: each is made once, on ONNX Runtime.
        make_training_engine: makes the backprop devices' engines; None: each is made once, on its device's engine.

    Returns:
        The job's summary (summary.job_summary).

    Raises:
        JobError: it was stopped, or a device ended on another adapter than the server.
        CoveyError: what went wrong.
    """
    hub, finals = Hub(), dict[str, str]()
    makers = (make_engine, make_training_engine)

    def connect(stack: contextlib.ExitStack, _http_port: int) -> Transport:
        stack.enter_context(_running(hub, bundle, devices, finals, makers))
        return hub.join()

    options = ServeOptions(bundle=bundle.path, state_dir=state_dir, listen="127.0.0.1", http_port=0, threads=1)
    summary = coordinate(fitted, bundle, options, connect, observe, should_stop)
    if summary is None:
        raise JobError("the job was stopped", "start it again to resume it")
    wrong = sorted(name for name, sha256 in finals.items() if sha256 != summary["adapter_sha256"])
    if wrong or len(finals) != len(devices):
        raise JobError(f"{len(finals)} of {len(devices)} devices finished, on another adapter: {wrong}", "see the log")
    return summary


@contextlib.contextmanager
def _running(
    hub: Hub,
    bundle: Bundle,
    devices: Sequence[EdgeConfig],
    finals: dict[str, str],
    makers: tuple[EngineMaker | None, TrainingEngineMaker | None],
) -> Iterator[None]:
    """Serve all devices from a thread of their own meanwhile."""
    engines, agents, (given, given_training) = SharedEngines(), {}, makers
    for config in devices:
        store = Store(Path(config.state_dir))
        installed = store.bundles / bundle.sha256
        if not installed.exists():
            installed.symlink_to(bundle.path.resolve(), target_is_directory=True)
        transport = hub.join(lost_will(config, "simulated"))
        agents[config.name] = Agent(
            config,
            store,
            transport,
            "simulated",
            make_engine=given or functools.partial(engines, config.engine),
            make_training_engine=given_training or functools.partial(engines.training, config.engine),
        )
    done = threading.Event()

    def serve() -> None:
        while not done.is_set():
            before = hub.published
            for name, agent in agents.items():
                finished = agent.serve_waiting()
                if finished is not None:
                    finals[name] = finished.adapter_sha256
            if hub.published == before:
                done.wait(_IDLE_S)

    thread = threading.Thread(target=serve, name="devices", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
