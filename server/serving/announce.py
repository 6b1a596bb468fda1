"""Announces a server in its local network by mDNS, for devices that join: ``covey serve --announce``."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
from typing import TYPE_CHECKING

from edge_runtime.errors import ConfigError, NetworkError, cause_of
from edge_runtime.trust.announcement import SERVICE, Announcement, to_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from server.serving.options import ServeOptions
    from server.trust.folder import Trust

_LOG = logging.getLogger(__name__)
_EVERY_INTERFACE = ("0.0.0.0", "::")  # noqa: S104 compared, not bound
_NAME_DIGITS = 12


@contextlib.contextmanager
def announced(options: ServeOptions, trust: Trust, port: int) -> Iterator[None]:
    """Announce the joining side until the block ends.

    Everybody in the local network learns that the server is here, its fleet's name, its names and addresses, the port,
    and the hash of its authority; nothing of it is secret.

    Args:
        options: the server's.
        trust: the fleet's authority.
        port: of the joining side.

    Raises:
        ConfigError: the library zeroconf is not installed.
        NetworkError: this machine has no network for it.
    """
    try:
        from zeroconf import Error, InterfaceChoice, ServiceInfo, Zeroconf  # noqa: PLC0415 an extra
    except ImportError as error:
        raise ConfigError(f"--announce needs the library zeroconf ({error})", "pip install 'covey[mdns]'") from error
    only = None if options.listen in _EVERY_INTERFACE else [options.listen]
    try:
        zeroconf = Zeroconf(interfaces=only or InterfaceChoice.All)
    except (OSError, RuntimeError) as error:
        raise _no_network(error) from error
    announcement = Announcement(trust.fleet, trust.authority.sha256.hex(), _hosts(trust, is_local=bool(only)), port)
    label = f"covey-{announcement.authority_sha256[:_NAME_DIGITS]}"
    info = ServiceInfo(
        SERVICE,
        f"{label}.{SERVICE}",
        port=port,
        properties=to_text(announcement),
        parsed_addresses=only or _addresses(),
        server=f"{label}.local.",
    )
    with contextlib.closing(zeroconf):
        try:
            zeroconf.register_service(info, allow_name_change=True)
        except (Error, OSError) as error:
            raise _no_network(error) from error
        _LOG.info("announced in the local network as %s", info.name)
        yield


def _no_network(error: Exception) -> NetworkError:
    return NetworkError(
        f"the server cannot be announced in the local network: {cause_of(error)}",
        "check that an interface is up and lets multicast through; or start covey serve without --announce",
    )


def _hosts(trust: Trust, *, is_local: bool) -> list[str]:
    """Return the hosts of the server's certificate that lead to it from elsewhere."""
    return [host for host in trust.hosts if is_local or not _is_loopback(host)]


def _addresses() -> list[str]:
    """Return this machine's addresses in its networks."""
    import ifaddr  # noqa: PLC0415 comes with zeroconf

    found = [ip.ip if isinstance(ip.ip, str) else ip.ip[0] for each in ifaddr.get_adapters() for ip in each.ips]
    return [address for address in found if not _is_loopback(address) and not address.startswith("fe80")]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
