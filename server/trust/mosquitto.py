"""Writes what mosquitto needs to serve a fleet that has an authority: configuration, access list, certificates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.serialization import Encoding

from edge_runtime.files.atomic import write_atomically
from edge_runtime.protocol.topics import TOPIC_ROOT
from edge_runtime.trust.keys import certificate_pem, own_key
from server.trust.authority import server_name

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from server.trust.folder import Trust

CONFIG, ACCESS, AUTHORITY, CERT, KEY, REVOKED = (
    "mosquitto.conf",
    "covey.acl",
    "ca.pem",
    "broker.pem",
    "broker-key.pem",
    "revoked.pem",
)
DEVICE_WRITES = ("birth", "state", "profile", "report", "log", "released", "predicted", "probe")
DEVICE_READS = ("plan", "report/ack", "log/get", "release", "predict", "probe")
_CONFIG = """\
# A broker for fleet {fleet}, written by covey fleet mosquitto, which also writes it anew. Made for mosquitto 2.
per_listener_settings false
listener {port}
protocol mqtt

# TLS 1.3; whoever connects shows a certificate of the fleet, and is called what the certificate says.
tls_version tlsv1.3
cafile {folder}/{authority}
certfile {folder}/{cert}
keyfile {folder}/{key}
crlfile {folder}/{revoked}
require_certificate true
use_identity_as_username true
allow_anonymous false
acl_file {folder}/{access}

# Messages wait for slow readers without a limit in number; the default of 1,000 drops what is beyond.
max_queued_messages 0
max_inflight_messages 100
message_size_limit {most_bytes}

# Small packets go out at once: else each waits up to 40 ms for the acknowledgement of the one before.
set_tcp_nodelay true
"""


@dataclass(frozen=True)
class Revoked:
    """Whom a broker must not let in.

    Attributes:
        serials: numbers of revoked certificates, in hexadecimal digits.
        names: devices that have no other certificate; their connections hear and say nothing more.
    """

    serials: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()


def write_mosquitto(
    trust: Trust,
    folder: Path,
    hosts: Sequence[str],
    port: int,
    revoked: Revoked,
    now: dt.datetime,
    most_bytes: int = 1 << 18,
) -> list[Path]:
    """Write mosquitto's files into a folder; the broker's key is made where it is missing.

    Args:
        trust: the fleet's keys.
        folder: where to; mosquitto's user must be able to read it.
        hosts: names and addresses of the broker.
        port: the port that it listens on.
        revoked: whom it must not let in.
        now: the time.
        most_bytes: of a message; those of Covey are below 128 KB.

    Returns:
        The files.

    Raises:
        ConfigError: a host can be none.
        StorageError: a file cannot be written.
    """
    authority, fleet = trust.authority, trust.fleet
    folder.mkdir(parents=True, exist_ok=True)
    certificate = authority.broker(hosts, own_key(folder / KEY).public_key(), now)
    config = _CONFIG.format(
        fleet=fleet,
        port=port,
        folder=folder.resolve(),
        authority=AUTHORITY,
        cert=CERT,
        key=KEY,
        revoked=REVOKED,
        access=ACCESS,
        most_bytes=most_bytes,
    )
    files = {
        CONFIG: config.encode(),
        AUTHORITY: certificate_pem(authority.certificate).encode(),
        CERT: certificate_pem(certificate).encode(),
        **_of_revoked(trust, revoked, now),
    }
    for name, data in files.items():
        write_atomically(folder / name, data)
    return [folder / name for name in (*files, KEY)]


def write_revoked(trust: Trust, folder: Path, revoked: Revoked, now: dt.datetime) -> None:
    """Write the list of revoked certificates and the access list anew; mosquitto reads both on SIGHUP.

    Raises:
        StorageError: a file cannot be written.
    """
    for name, data in _of_revoked(trust, revoked, now).items():
        write_atomically(folder / name, data)


def _of_revoked(trust: Trust, revoked: Revoked, now: dt.datetime) -> dict[str, bytes]:
    """Return the two files; the list of certificates comes last, so that its change says that both are there."""
    return {
        ACCESS: access_list(trust.fleet, revoked.names).encode(),
        REVOKED: trust.authority.revoked(revoked.serials, now).public_bytes(Encoding.PEM),
    }


def access_list(fleet: str, revoked: Collection[str] = ()) -> str:
    """Return mosquitto's access list: a device has its own topics and reads the hello, the server has all of them.

    Args:
        fleet: the fleet's name.
        revoked: names of devices that have nothing; mosquitto closes no connection for a revoked certificate.
    """
    own = f"{TOPIC_ROOT}/{fleet}"
    lines = [f"# Topics of fleet {fleet}: the server's, then those of a device, whose name is %u."]
    for name in sorted(revoked):
        lines += [f"user {name}", "topic deny #", ""]
    lines += [f"user {server_name(fleet)}", f"topic readwrite {own}/#", ""]
    lines += [f"pattern write {own}/%u/{kind}" for kind in DEVICE_WRITES]
    lines += [f"pattern read {own}/%u/{kind}" for kind in DEVICE_READS]
    lines += [f"pattern read {own}/hello"]
    return "\n".join(lines) + "\n"
