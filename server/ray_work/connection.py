"""This process's connection to Ray: made, checked, watched and closed, with errors that say what to do."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import secrets
import signal
import socket
from typing import TYPE_CHECKING, Any

from edge_runtime import __version__
from edge_runtime.errors import ConfigError, NetworkError, cause_of
from server.ray_work.options import host_and_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from server.ray_work.options import RayOptions

_ANSWER_S = 5.0
"""Seconds in which a head must accept a connection, and say what it speaks."""
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""What a client of HTTP/2 says first, with an empty SETTINGS frame (RFC 9113, 3.4): Ray's head speaks gRPC."""
_SETTINGS = 4
"""The type of the frame that answers it, in its fourth byte."""
_CHECK_S = 300.0
"""Seconds in which every machine of a cluster must have said its versions; a worker starts in a few."""
_MOST_SILENT = 3
"""How many looks in a row must find no head, until it counts as lost."""
RETRIES = 5
"""How often a piece is tried again where its worker has died, or was killed for want of memory."""
_SAME_VERSIONS = "install the same versions of Covey, Python and Ray on every machine of the cluster"


def load_ray() -> Any:  # noqa: ANN401 Ray is imported where it is used, and its types with it
    """Import Ray, which sends no usage statistics then unless the environment asks for it.

    Raises:
        ConfigError: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Without it, a call after a cluster was lost would begin a new one on this machine, for anybody.
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
    # Ray's own number is without end: a piece that never fits would be tried for ever.
    os.environ.setdefault("RAY_task_oom_retries", str(RETRIES))
    try:
        import ray  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(
            f"--workers and --ray-address need Ray, which cannot be imported ({error})",
            "pip install 'covey[ray]', or leave the option out: the result is the same",
        ) from error
    return ray


def demand_token() -> None:
    """Have the Ray that this process starts refuse everybody without its token, which only its own processes know.

    Ray listens on every interface, and whoever can speak to it can run code. A token that the environment has stays.
    Ray reads the environment when it is imported: this comes before.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if os.environ["RAY_AUTH_MODE"] == "token" and not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


class Connection:
    """A connection to a cluster, or to workers of this machine that end with it.

    Args:
        options: where the workers are.

    Attributes:
        ray: the module.
        workers: number of CPUs: pieces of work that run at once.

    Raises:
        ConfigError: Ray is not installed, or the machines have other versions of something.
        NetworkError: the cluster does not answer, or this machine is none of its nodes.
    """

    def __init__(self, options: RayOptions) -> None:
        if options.address is None:
            demand_token()
        self.ray = load_ray()
        self._name = options.name
        if options.address is None:
            self._join(address="local", num_cpus=options.workers, include_dashboard=False)
        else:
            self._reach(*host_and_port(options.address))
            self._join(address=options.address)
        try:
            context = self.ray.get_runtime_context()
            self._head, self._node = host_and_port(context.gcs_address), context.get_node_id()
            if options.address is not None:
                self._check_versions()
            self.workers = self._count_cpus()
        except self.ray.exceptions.RayError as error:
            self.ray.shutdown()
            raise NetworkError(
                f"{self._name} was lost while it was joined: {cause_of(error)}",
                "run the command again",
            ) from error
        except BaseException:
            self.ray.shutdown()
            raise
        self._silent = 0

    def _count_cpus(self) -> int:
        found = int(self.ray.cluster_resources().get("CPU", 0))
        if found < 1:
            raise ConfigError(f"{self._name} has no CPU", "ray start --num-cpus N on a machine")
        return found

    def _reach(self, host: str, port: int) -> None:
        """Try to connect before Ray does, which tries for minutes."""
        hint = "ray start --head on the machine that leads it, and ray status there; or leave --ray-address out"
        try:
            with socket.create_connection((host, port), timeout=_ANSWER_S) as probe:
                if os.environ.get("RAY_USE_TLS", "0") == "1":
                    return
                probe.sendall(_HELLO)
                answer = probe.recv(9)
        except OSError as error:
            raise NetworkError(f"no Ray cluster answers at {self._name}: {error.strerror or error}", hint) from error
        if len(answer) < 4 or answer[3] != _SETTINGS:
            raise NetworkError(f"what listens at {self._name} is no Ray cluster", hint)

    def _join(self, **settings: object) -> None:
        with _own_signals():
            try:
                self.ray.init(log_to_driver=False, logging_level=logging.ERROR, **settings)
            except Exception as error:
                self.ray.shutdown()
                text = cause_of(error)
                if "ersion mismatch" in text:
                    raise ConfigError(f"{self._name} is another one: {text}", _SAME_VERSIONS) from error
                raise NetworkError(
                    f"cannot join {self._name}: {text}",
                    "this machine must be one of its nodes: ray start --address HOST:PORT; ray status shows them",
                ) from error

    def _check_versions(self) -> None:
        """Ask every machine which Covey and which Python it has."""
        expected = (__version__, platform.python_version())

        def versions() -> tuple[str, str]:  # a function within a function is sent as code: a worker may lack Covey
            import platform  # noqa: PLC0415

            try:
                from edge_runtime import __version__ as found  # noqa: PLC0415
                from server.ray_work.piece import run_piece  # noqa: F401, PLC0415
            except ImportError as error:
                return f"none: {error}", platform.python_version()
            return found, platform.python_version()

        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415

        remote = self.ray.remote(num_cpus=0, max_retries=1)(versions)
        nodes = {node["NodeID"]: node["NodeManagerHostname"] for node in self.ray.nodes() if node["Alive"]}
        asked = {
            remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(): name
            for node, name in nodes.items()
        }
        answered, silent = self.ray.wait(list(asked), num_returns=len(asked), timeout=_CHECK_S)
        if silent:
            raise NetworkError(f"{asked[silent[0]]} of {self._name} does not answer", "ray status shows its nodes")
        for reference in answered:
            found = tuple(self.ray.get(reference))
            if found != expected:
                raise ConfigError(
                    f"{asked[reference]} of the Ray cluster has Covey {found[0]} on Python {found[1]}, this machine "
                    f"has Covey {expected[0]} on Python {expected[1]}",
                    _SAME_VERSIONS,
                )

    def look(self) -> None:
        """Look whether the cluster is there; called again and again, by one thread, whatever the others do.

        Raises:
            NetworkError: the head is gone, or has dropped this machine: its raylet has ended.
        """
        try:
            socket.create_connection(self._head, timeout=_ANSWER_S).close()
        except OSError as error:
            self._silent += 1
            if self._silent >= _MOST_SILENT:
                raise self.lost(error.strerror or str(error)) from error
            return
        self._silent = 0
        if not any(node["NodeID"] == self._node and node["Alive"] for node in self.ray.nodes()):
            raise self.lost("its head does not know this machine any more")

    def lost(self, why: str) -> NetworkError:
        """Return the error of a cluster that is gone."""
        return NetworkError(
            f"{self._name} is lost: {why}",
            "start it again (ray start --head): what was finished is kept",
        )

    def close(self) -> None:
        """Leave the cluster; workers of this machine end."""
        with _own_signals():
            self.ray.shutdown()


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Keep this process's handler of SIGTERM: Ray takes it for itself."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
