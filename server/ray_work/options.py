"""How much Ray a command uses: a number of workers on this machine, or a cluster's address."""

from __future__ import annotations

from dataclasses import dataclass

from edge_runtime.errors import ConfigError

_FLAGS = "--workers N starts N processes on this machine; --ray-address HOST:PORT uses all CPUs of a cluster"


@dataclass(frozen=True)
class RayOptions:
    """Where the workers are.

    Attributes:
        workers: number of processes that are started on this machine; None: those of the cluster at ``address``.
        address: ``host:port`` of a cluster's head; None: no cluster.
    """

    workers: int | None = None
    address: str | None = None

    @property
    def name(self) -> str:
        """What messages call it."""
        return "the Ray of this machine" if self.address is None else f"the Ray cluster at {self.address}"


def ray_options(workers: int | None, address: str | None) -> RayOptions | None:
    """Return the options of a command's two flags; None: neither is given, and Ray is not used.

    Raises:
        ConfigError: both are given, the number is below 1, or the address is not ``host:port``.
    """
    if workers is None and address is None:
        return None
    if workers is not None and address is not None:
        raise ConfigError("--workers and --ray-address exclude each other", _FLAGS)
    if workers is not None and workers < 1:
        raise ConfigError(f"--workers {workers} is below 1", _FLAGS)
    if address is not None:
        host_and_port(address)
    return RayOptions(workers, address)


def host_and_port(address: str) -> tuple[str, int]:
    """Return the two parts of a cluster's address.

    Raises:
        ConfigError: it has another form.
    """
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ConfigError(
            f"--ray-address {address!r} is not HOST:PORT", "give what ray start --head has printed, as 192.0.2.7:6379"
        )
    return host.strip("[]"), int(port)
