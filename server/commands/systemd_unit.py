"""The systemd unit of ``covey serve``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from edge_runtime.errors import ConfigError
from server.serving.options import default_listen, default_mqtt_port
from server.web.broker import EMBEDDED

if TYPE_CHECKING:
    from server.serving.options import ServeOptions

_UNIT = """\
[Unit]
Description=Covey server of fleet {fleet}
Wants=network-online.target
After=network-online.target

[Service]
# systemd starts it again where it has hung for so long; a download or a replay may take hours.
Type=notify
WatchdogSec=30min
TimeoutStartSec=30min
User={user}
ExecStart={command}
Restart=on-failure
RestartSec=5
# A stop waits for the round that is being merged; a job that is cut off goes on with the next start.
TimeoutStopSec=120
# Only the server is told to stop: workers of Ray may be at that round, and end with it.
KillMode=mixed
LimitNOFILE=65536
NoNewPrivileges=yes
ProtectSystem=full
ProtectKernelTunables=yes
ProtectControlGroups=yes
RestrictSUIDSGID=yes

[Install]
WantedBy=multi-user.target
"""


def unit_text(options: ServeOptions, user: str) -> str:
    """Return a unit that runs ``covey serve`` with the same Python and the same options.

    Args:
        options: of the server.
        user: runs it.

    Raises:
        ConfigError: the broker's address has a password, which everybody could read in the unit.
    """
    if options.broker != EMBEDDED and "@" in options.broker:
        raise ConfigError(
            "the broker's address has a password, and every user of this machine can read a unit",
            "let the server log in by certificate (--tls-cert, --tls-key)",
        )
    words = [sys.executable, "-m", "server.cli", "serve", "--state-dir", str(options.state_dir.resolve())]
    for flag, value, default in (
        ("--fleet", options.fleet, "default"),
        ("--broker", options.broker, EMBEDDED),
        ("--report-connections", options.report_connections, 1),
        ("--listen", options.listen, default_listen(options.state_dir)),
        ("--mqtt-port", options.mqtt_port, default_mqtt_port(options.state_dir)),
        ("--http-port", options.http_port, 8080),
        ("--public-url", options.public_url, None),
        ("--blob-mirror", options.blob_mirror, None),
        ("--blobs", options.blobs, None),
        ("--api-port", options.api_port, None),
        ("--api-listen", options.api_listen, "127.0.0.1"),
        ("--api-url", options.api_url, None),
        ("--operators", options.operators and options.operators.resolve(), None),
        ("--operator-header", options.operator_proxy and options.operator_proxy.header, None),
        ("--operator-proxy", options.operator_proxy and options.operator_proxy.address, None),
        ("--join-port", options.join_port, 8443),
        ("--threads", options.threads, 0),
        ("--tls-ca", options.tls and options.tls.ca_file, None),
        ("--tls-cert", options.tls and options.tls.cert_file, None),
        ("--tls-key", options.tls and options.tls.key_file, None),
        ("--sign-key", options.signing and options.signing.key_file.resolve(), None),
        ("--device-keys", options.signing and options.signing.device_keys.resolve(), None),
        ("--ledger", options.ledger, None),
        ("--workers", options.ray and options.ray.workers, None),
        ("--ray-address", options.ray and options.ray.address, None),
        ("--mosquitto", options.mosquitto and options.mosquitto.resolve(), None),
    ):
        if value != default:
            words += [flag, str(value)]
    if options.approve_joins:
        words.append("--approve-joins")
    if options.standby:
        words.append("--standby")
    if options.announce:
        words.append("--announce")
    return _UNIT.format(fleet=options.fleet, user=user, command=" ".join(map(_quoted, words)))


def _quoted(word: str) -> str:
    """Return a word as systemd reads it."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if escaped != word or " " in word else word
