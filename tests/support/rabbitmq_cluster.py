"""A RabbitMQ cluster of three nodes on this machine: real processes, which a test kills and starts again."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from fleets import free_port, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

BINARIES = Path("/usr/lib/rabbitmq/bin")
PATIENCE_S = 400.0
"""A node starts within 15 s on a free machine; three on a busy one need minutes."""
_ESTABLISHED = "01"
_CONFIG = """\
listeners.tcp.1 = 127.0.0.1:{amqp}
mqtt.listeners.tcp.1 = 127.0.0.1:{mqtt}
mqtt.allow_anonymous = true
mqtt.vhost = /
mqtt.exchange = amq.topic
cluster_partition_handling = pause_minority
cluster_formation.peer_discovery_backend = classic_config
"""


class RabbitNode:
    """One Erlang node: its files are in a folder of its own, and it comes back with them.

    Args:
        folder: of the cluster.
        number: of the node, from 0.
        names: of all nodes.
        epmd: port of the name server.
        settings: further lines of its rabbitmq.conf.
        prefix: words before its command.

    Attributes:
        port: its MQTT port on 127.0.0.1.
    """

    def __init__(
        self, folder: Path, number: int, names: list[str], epmd: int, settings: str = "", prefix: Sequence[str] = ()
    ) -> None:
        self.port, self.name = free_port(), names[number]
        own = folder / f"node-{number}"
        own.mkdir()
        members = "".join(f"cluster_formation.classic_config.nodes.{n + 1} = {name}\n" for n, name in enumerate(names))
        (own / "rabbitmq.conf").write_text(_CONFIG.format(amqp=free_port(), mqtt=self.port) + members + settings)
        (own / "plugins").write_text("[rabbitmq_mqtt].")
        self._command = [*prefix, str(BINARIES / "rabbitmq-server")]
        self._log = own / "log"
        self._env = os.environ | {
            "PATH": f"{BINARIES}:{os.environ['PATH']}",
            "HOME": str(folder),  # of all nodes: the cookie by which they know each other is there
            "ERL_EPMD_PORT": str(epmd),
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_CONFIG_FILE": str(own / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(own / "plugins"),
            "RABBITMQ_MNESIA_BASE": str(own / "mnesia"),
            "RABBITMQ_LOG_BASE": str(own),
            "RABBITMQ_LOGS": str(self._log),
            "RABBITMQ_PID_FILE": str(own / "pid"),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RUNNING_UNDER_SYSTEMD": "1",  # the script becomes the Erlang machine, and kill meets that
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none",
        }
        self._folder = own
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, for the first time or again; see wait_until_up."""
        with (self._folder / "out").open("ab") as out:  # and dumps of a node that breaks go into its folder
            self._process = subprocess.Popen(self._command, env=self._env, cwd=self._folder, stdout=out, stderr=out)

    def wait_until_up(self) -> None:
        """Return when it takes MQTT connections."""

        def is_listening() -> bool:
            assert self._process is not None
            assert self._process.poll() is None, self._log.read_text()[-3000:]
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return True
            return False

        wait_for(is_listening, f"node {self.name}", PATIENCE_S)

    def connections(self) -> int:
        """Return how many MQTT connections it has, by this machine's table of sockets."""
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        return sum(row[1].endswith(f":{self.port:04X}") and row[3] == _ESTABLISHED for row in rows)

    def control(self, *words: str) -> str:
        """Run rabbitmqctl on this node and return what it prints."""
        command = [str(BINARIES / "rabbitmqctl"), "-q", "-n", self.name, *words]
        return subprocess.run(command, env=self._env, check=True, capture_output=True, text=True, timeout=300).stdout

    def kill(self) -> None:
        """End it with SIGKILL: it says no goodbye, and publishes no last will of its devices."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    def end_epmd(self) -> None:
        """End the name server of these nodes, which the first of them has started."""
        subprocess.run(["epmd", "-kill"], env=self._env, check=False, capture_output=True, timeout=60)


class RabbitCluster:
    """Three nodes.

    Attributes:
        nodes: the nodes.
        url: the address with all nodes, as in edge.toml.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        epmd = free_port()
        names = [f"covey{epmd}n{number}@localhost" for number in range(3)]
        self.nodes = [RabbitNode(folder, number, names, epmd) for number in range(3)]
        self.url = "mqtt://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def start(self) -> None:
        """Start all nodes, and wait until each takes connections and knows the others."""
        for node in self.nodes:
            node.start()
            node.wait_until_up()  # one after the other: the first makes the cluster, the others join it
        wait_for(lambda: self._running() == 3, "three nodes in one cluster", PATIENCE_S)

    def _running(self) -> int:
        words = "length(rabbit_mnesia:cluster_nodes(running))."
        return int(self.nodes[0].control("eval", words))

    def stop(self) -> None:
        """Kill all nodes, and end their name server."""
        for node in self.nodes:
            node.kill()
        self.nodes[0].end_epmd()


@contextlib.contextmanager
def rabbitmq_cluster(folder: Path) -> Iterator[RabbitCluster]:
    """Run a cluster of three nodes."""
    cluster = RabbitCluster(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@contextlib.contextmanager
def rabbitmq_node(folder: Path, settings: str = "", prefix: Sequence[str] = ()) -> Iterator[RabbitNode]:
    """Run one node; see RabbitNode."""
    folder.mkdir()
    epmd = free_port()
    node = RabbitNode(folder, 0, [f"covey{epmd}n0@localhost"], epmd, settings, prefix)
    try:
        node.start()
        node.wait_until_up()
        yield node
    finally:
        node.kill()
        node.end_epmd()


def has_rabbitmq() -> bool:
    """Whether Debian's rabbitmq-server is installed."""
    return (BINARIES / "rabbitmq-server").is_file()
